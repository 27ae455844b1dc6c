"""Chains of stages with adapters and quantised bases through the real command line, on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

import core.artifacts.artifact
from core.__main__ import main
from core.errors import ModelError
from core.models.by_role import models_for_roles, trainable_scorer
from core.models.loading import adapter_base, load_module, read_record
from core.models.packed import PromptGroup, pack
from core.models.roles import ScoreModel
from core.models.start import Start
from core.planning.sources import resolve_source
from core.settings.schema import Device, Dtype, ModelConfig, PeftConfig, RunConfig, RuntimeConfig
from core.testing import tiny_model, tiny_pairs
from core.testing.warm import verify_apart, warm_stages

IDS = torch.tensor([[5, 9, 33, 71, 100, 8, 61, 300, 12, 4]])
MASK = torch.ones_like(IDS)


@dataclass
class Bench:
    """A model, its data, and a way to run stages on them."""

    folder: Path

    def run(self, runs: str, *words: str) -> int:
        return main(
            [
                "model=custom", f"model.source={self.folder / 'model'}", "model.max_length=128",
                f"data.path={self.folder / 'pairs.jsonl'}", "tracker=none", f"runs_dir={self.folder / runs}",
                "rollout=transformers", "upstream.sft.max_steps=3", "upstream.sft.lr=0.01", "upstream.sft.batch_size=4",
                "upstream.reward.max_steps=3", "upstream.reward.lr=0.01", "upstream.reward.batch_size=4",
                "stage.max_steps=2", "stage.lr=0.003", "stage.batch_size=4", "eval.max_new_tokens=6",
                "eval.max_items=4", *words,
            ]
        )  # fmt: skip

    def stages(self, runs: str) -> dict[str, Path]:
        """Run folder by stage."""
        return {json.loads(path.read_text())["stage"]: path.parent for path in self.folder.glob(f"{runs}/**/plan.json")}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("peft_runs")
    tiny_model(folder / "model")
    tiny_pairs(folder / "pairs.jsonl")
    with warm_stages(), mock.patch.object(core.artifacts.artifact, "verify_in_fresh_process", verify_apart):
        yield Bench(folder)


@pytest.fixture(scope="module")
def chain(bench: Bench) -> dict[str, Path]:
    """sft, reward and ppo, each with a LoRA of its own."""
    words = ("stage=rlhf", "algorithm=ppo", "peft=lora", "peft.merge=true", "runtime.dtype=fp32")
    assert bench.run("chain", *words, "stage.max_new_tokens=6") == 0
    return bench.stages("chain")


def config(bench: Bench) -> RunConfig:
    runtime = RuntimeConfig(dtype=Dtype.fp32, device=Device.cpu)
    return RunConfig(stage=None, model=ModelConfig(source=str(bench.folder / "model")), runtime=runtime)


def plain(folder: Path, scores: bool = False) -> nn.Module:
    """What a stranger gets from a folder in transformers' format."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, **({"num_labels": 1} if scores else {})).eval()


def with_adapter(folder: Path, scores: bool = False) -> Any:
    """What a stranger gets from an adapter's folder."""
    from peft import PeftModel

    torch.manual_seed(123)
    base = plain(Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]), scores)
    base.config.pad_token_id = 0
    return PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False).eval()


def logits(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=IDS, attention_mask=MASK).logits.float()


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def artifact(run: Path) -> dict[str, Any]:
    return json.loads((run / "artifact.json").read_text())


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [row.get("metrics", row) for row in rows]
    return [value for row in found for name, value in row.items() if name.endswith("/loss") and name[:5] != "eval/"]


def test_every_artifact_is_a_verified_adapter(chain: dict[str, Path]):
    assert set(chain) == {"sft", "reward", "rlhf"}
    for stage, run in chain.items():
        names = {path.name for path in (run / "artifact").iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "preftune.json", "merged"} <= names
        assert "model.safetensors" not in names
        checks = {check["name"]: check["ok"] for check in artifact(run)["verification"]["checks"]}
        assert all(checks.values()) and checks["merged weights"] and ("scores" in checks) == (stage == "reward")


@pytest.mark.parametrize("stage", ["sft", "rlhf"])
def test_merged_folder_is_the_adapter(chain: dict[str, Path], stage: str):
    folder = chain[stage] / "artifact"
    adapter = with_adapter(folder)
    assert gap(logits(plain(folder / "merged")), logits(adapter)) <= 1e-5
    with adapter.disable_adapter():
        assert gap(logits(adapter), logits(plain(folder / "merged"))) > 1e-3


def test_each_stage_starts_from_the_merged_stage_before(chain: dict[str, Path], bench: Bench):
    result = logits(with_adapter(chain["sft"] / "artifact"))
    for stage in ("reward", "rlhf"):
        assert gap(logits(plain(adapter_base(chain[stage] / "artifact"))), result) <= 1e-5
    loaded = load_module(chain["sft"] / "artifact", config(bench), torch.float32, "CAUSAL_LM")
    assert not hasattr(loaded, "peft_config") and gap(logits(loaded), result) <= 1e-5


def test_the_reference_is_the_policy_with_its_adapter_off(chain: dict[str, Path]):
    policy = with_adapter(chain["rlhf"] / "artifact")
    with policy.disable_adapter():
        assert gap(logits(policy), logits(with_adapter(chain["sft"] / "artifact"))) <= 1e-5
    plan = json.loads((chain["rlhf"] / "plan.json").read_text())
    assert "adapter off" in plan["roles"]["reference"]["from"]


def test_the_reward_models_head_and_offset_survive(chain: dict[str, Path], bench: Bench):
    folder = chain["reward"] / "artifact"
    adapter = with_adapter(folder, scores=True)
    merged = plain(folder / "merged", scores=True)
    merged.config.pad_token_id = 0
    loaded = load_module(folder, config(bench), torch.float32, "SEQ_CLS")
    assert torch.equal(loaded.score.weight, merged.score.weight)
    assert gap(logits(adapter), logits(merged)) <= 1e-5 and gap(logits(loaded), logits(merged)) <= 1e-5
    # The head was trained: it is not the one that would be drawn for weights without a head.
    fresh = load_module(bench.folder / "model", config(bench), torch.float32, "SEQ_CLS")
    assert gap(fresh.score.weight, loaded.score.weight) > 1e-4
    offset = read_record(folder)["preftune_reward_offset"]
    assert offset != 0
    for module in (loaded, merged):
        assert ScoreModel(module).offset == pytest.approx(offset)


def test_the_value_model_starts_from_the_reward_model(chain: dict[str, Path], bench: Bench, tmp_path: Path):
    cfg = config(bench)
    cfg.peft = PeftConfig(method="lora")
    reward = chain["reward"] / "artifact"
    value = trainable_scorer(Start(cfg, tmp_path, weights=chain["sft"] / "artifact"), folder=reward)
    assert value.offset == pytest.approx(read_record(reward)["preftune_reward_offset"])
    start = load_module(reward, config(bench), torch.float32, "SEQ_CLS")
    assert gap(logits(value.module), logits(start)) <= 1e-6
    assert any("score.modules_to_save" in name for name, _ in value.trainable())


def test_the_models_of_a_run_hold_one_base(bench: Bench, tmp_path: Path):
    """No second copy for the reference, unless the adapter takes its start out of the base."""
    cfg = config(bench)
    base = plain(bench.folder / "model")
    size = sum(parameter.numel() for parameter in base.parameters())
    for options, copies in (({}, 1), ({"init_lora_weights": "pissa"}, 2)):
        cfg.peft = PeftConfig(method="lora", r=2, options=options)
        models = models_for_roles(Start(cfg, tmp_path), ("policy", "reference"))
        held = {id(p): p.numel() for model in models.by_role().values() for p in model.parameters()}
        own = sum(parameter.numel() for _, parameter in models.policy.trainable())
        assert sum(held.values()) == copies * size + own

        row = pack([PromptGroup([5, 9], [[33, 71, 4]])])
        expected = torch.log_softmax(base(torch.tensor([[5, 9, 33, 71, 4]])).logits[0], dim=1)[[1, 2, 3], [33, 71, 4]]
        assert gap(models.reference_logprobs(row), expected) <= 1e-5


def test_runs_that_moved_together_still_load(chain: dict[str, Path], bench: Bench, tmp_path: Path):
    result = logits(with_adapter(chain["rlhf"] / "artifact"))
    shutil.copytree(chain["rlhf"], tmp_path / "moved" / "rlhf")
    folder = tmp_path / "moved" / "rlhf" / "artifact"
    text = (folder / "adapter_config.json").read_text().replace(str(bench.folder), "/nowhere")
    (folder / "adapter_config.json").write_text(text)
    assert adapter_base(folder) == (tmp_path / "moved" / "rlhf" / "engine").resolve()
    assert gap(logits(load_module(folder, config(bench), torch.float32, "CAUSAL_LM")), result) <= 1e-5

    shutil.rmtree(tmp_path / "moved" / "rlhf" / "engine")
    with pytest.raises(ModelError, match="is not at '/nowhere") as caught:
        load_module(folder, config(bench), torch.float32, "CAUSAL_LM")
    assert "base_model_name_or_path" in caught.value.mend


def test_a_run_with_an_adapter_can_be_a_models_source(chain: dict[str, Path]):
    assert resolve_source(ModelConfig(source=str(chain["sft"]))) == chain["sft"] / "artifact"


def test_prompt_methods_run_one_stage_alone(bench: Bench, capsys):
    assert bench.run("prompt", "stage=rlhf", "algorithm=dpo", "peft=prompt_tuning") == 2
    err = capsys.readouterr().err
    assert "cannot be merged" in err and "pipeline.stages" in err
    assert not bench.stages("prompt")
    assert bench.run("prompt", "stage=sft", "peft=prompt_tuning", "runtime.dtype=fp32", "stage.lr=0.1") == 0
    assert artifact(bench.stages("prompt")["sft"])["verification"]["ok"]
    with pytest.raises(ModelError, match="no stage can start from a 'prompt_tuning' adapter"):
        load_module(bench.stages("prompt")["sft"] / "artifact", config(bench), torch.float32, "CAUSAL_LM")


@pytest.mark.slow
def test_a_prompt_method_with_rollouts(bench: Bench):
    words = (
        "stage=rlhf",
        "algorithm=grpo",
        "pipeline.stages=[rlhf]",
        "peft=p_tuning",
        "reward=length",
        "reward.target_tokens=5",
    )
    assert bench.run("ptuning", *words, "stage.max_new_tokens=6", "runtime.dtype=fp32") == 0
    assert artifact(bench.stages("ptuning")["rlhf"])["verification"]["ok"]


def check_quantised(run: Path, bench: Bench, quant: str, result: torch.Tensor | None) -> None:
    """A verified adapter that says what it was trained on; its stage began at `result`, rounded."""
    done = artifact(run)
    assert done["verification"]["ok"] and done["trained"]["quant"] == quant
    assert read_record(run / "artifact")["quant"] == quant
    base = adapter_base(run / "artifact")
    assert "quantization_config" not in json.loads((base / "config.json").read_text())
    if result is not None:
        assert gap(logits(plain(base)), result) <= 0.1


@pytest.mark.slow
def test_nf4_chain(bench: Bench):
    """sft and dpo on 4-bit weights; what the first learned is in the second's start."""
    words = ("stage=rlhf", "algorithm=dpo", "peft=lora", "quant=nf4", "peft.merge=true", "upstream.sft.max_steps=6")
    assert bench.run("nf4", *words, "runtime.dtype=fp32") == 0
    stages = bench.stages("nf4")
    steps = losses(stages["sft"])
    assert steps[-1] < steps[0] - 0.5
    check_quantised(stages["sft"], bench, "nf4", None)
    merged = stages["sft"] / "artifact" / "merged"
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    result = logits(plain(merged))
    check_quantised(stages["rlhf"], bench, "nf4", result)
    assert gap(result, logits(plain(bench.folder / "model"))) > 0.5
    # The merged start is what 4-bit weights stand for plus the delta, not the unrounded weights plus the delta.
    loaded = load_module(stages["sft"] / "artifact", config(bench), torch.float32, "CAUSAL_LM")
    assert gap(logits(loaded), result) <= 1e-5
    assert gap(logits(with_adapter(stages["sft"] / "artifact").merge_and_unload()), result) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "dtype"), [("int8", "bf16"), ("nf4", "auto")])
def test_quantised_ppo_chain(bench: Bench, quant: str, dtype: str):
    words = ("stage=rlhf", "algorithm=ppo", "peft=lora", f"quant={quant}", "peft.merge=true", "stage.max_new_tokens=6")
    assert bench.run(f"ppo-{quant}", *words, f"runtime.dtype={dtype}", "upstream.sft.max_steps=6") == 0
    stages = bench.stages(f"ppo-{quant}")
    assert set(stages) == {"sft", "reward", "rlhf"}
    steps = losses(stages["sft"])
    assert steps[-1] < steps[0] - 0.5
    for run in stages.values():
        check_quantised(run, bench, quant, None)
        assert artifact(run)["trained"]["dtype"] == "bfloat16"


@pytest.mark.slow
def test_adalora_in_bf16_spreads_its_rank(bench: Bench):
    words = ("stage=sft", "peft=adalora", "peft.r=6", "peft.merge=true", "stage.max_steps=12", "stage.lr=0.01")
    assert bench.run("adalora", *words, "runtime.dtype=bf16", "stage.save_every_steps=5") == 0
    run = bench.stages("adalora")["sft"]
    assert artifact(run)["verification"]["ok"]
    pattern = json.loads((run / "artifact" / "adapter_config.json").read_text())["rank_pattern"]
    kept = [sum(flags) for flags in pattern.values()]
    assert sum(kept) == 4 * len(kept) and len(set(kept)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_pissa_takes_a_reference_of_its_own(bench: Bench, dtype: str):
    words = ("stage=rlhf", "algorithm=dpo", "peft=pissa", "peft.merge=true", f"runtime.dtype={dtype}")
    assert bench.run(f"pissa-{dtype}", *words) == 0
    run = bench.stages(f"pissa-{dtype}")["rlhf"]
    assert artifact(run)["verification"]["ok"]
    plan = json.loads((run / "plan.json").read_text())
    assert any("second copy" in line for line in plan["warnings"])
    assert "adapter off" not in plan["roles"]["reference"]["from"]
    # At the first step policy and reference agree.
    assert losses(run)[0] == pytest.approx(0.6931, abs=2e-4 if dtype == "fp32" else 2e-2)


@pytest.mark.slow
def test_dropout_trains_and_leaves_no_trace_in_the_artifact(bench: Bench):
    words = ("stage=sft", "peft=lora", "peft.dropout=0.5", "runtime.dtype=fp32")
    assert bench.run("dropout", *words) == 0
    assert artifact(bench.stages("dropout")["sft"])["verification"]["ok"]
