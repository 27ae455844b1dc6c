"""Both rollout engines against the trainer's own forward pass, and against each other."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.errors import ConfigError, DataError, PluginError, TrainingError
from core.models.start import Start
from core.settings.schema import Device, Dtype, ModelConfig, RunConfig, RuntimeConfig
from core.types import Rollout, Sampling
from plugins.rollout_transformers import TransformersRolloutConfig
from plugins.rollout_transformers.engine import TransformersEngine
from plugins.rollout_transformers.engine import build as build_transformers
from plugins.rollout_vllm import VllmRolloutConfig
from plugins.shared.sampling import draw, sample_tokens, truncate_logits

BF16_GAP = 1.0
"""Largest accepted log-probability gap of one token in bf16, in nats; about twice what was measured."""

MAX_TOKENS = 96


@pytest.fixture
def tiny(tiny_model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture
def engine(tiny: torch.nn.Module) -> TransformersEngine:
    return TransformersEngine(tiny, TransformersRolloutConfig())


def some_prompts(count: int = 6, vocabulary: int = 256, longest: int = 40) -> list[list[int]]:
    source = random.Random(0)
    return [[source.randrange(1, vocabulary) for _ in range(source.randrange(1, longest))] for _ in range(count)]


def trainer_logprobs(module: torch.nn.Module, rollout: Rollout, sampling: Sampling) -> list[float]:
    """Behaviour log-probabilities as the trainer computes them: one plain forward pass, one sequence."""
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    with torch.no_grad():
        logits_TV = module(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1].float()
    if sampling.temperature > 0:
        logits_TV = truncate_logits(logits_TV / sampling.temperature, sampling.top_k, sampling.top_p)
    return logits_TV.log_softmax(-1).gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0].tolist()


def largest_gap(left: list[list[float]], right: list[list[float]]) -> float:
    return max(abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def trainer_gap(module: torch.nn.Module, rollouts: list[Rollout], sampling: Sampling) -> float:
    return largest_gap([r.logprobs for r in rollouts], [trainer_logprobs(module, r, sampling) for r in rollouts])


def start_of(folder: Path, scratch: Path, dtype: Dtype) -> Start:
    """A stage's start from a plain checkpoint."""
    model = ModelConfig(source=str(folder), max_length=MAX_TOKENS)
    runtime = RuntimeConfig(dtype=dtype, device=Device.cpu)
    return Start(RunConfig(stage=None, model=model, runtime=runtime), scratch)


SAMPLINGS = [
    pytest.param(Sampling(12, temperature=0.0), id="greedy"),
    pytest.param(Sampling(12, temperature=0.7, n=3, seed=1), id="temperature"),
    pytest.param(Sampling(12, temperature=1.3, n=2, seed=2, top_p=0.8, top_k=20), id="truncated"),
]


class TestSampler:
    def test_draw_follows_the_probabilities(self) -> None:
        logprobs_BV = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).log().expand(4000, 4)
        tokens_B = draw(logprobs_BV, (torch.arange(4000) + 0.5) / 4000)
        assert torch.bincount(tokens_B, minlength=4).tolist() == [2000, 0, 1200, 800]

    def test_draw_never_takes_an_excluded_last_token(self) -> None:
        logprobs_BV = torch.tensor([[0.25, 0.75, 0.0]]).log()
        assert draw(logprobs_BV, torch.tensor([1 - 2.0**-24])).tolist() == [1]

    def test_truncated_distribution_is_renormalised(self) -> None:
        logits_BV = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
        kept_by_p = truncate_logits(logits_BV, 0, 0.7).softmax(-1)
        torch.testing.assert_close(kept_by_p, torch.tensor([[0.625, 0.375, 0, 0]]))
        kept_by_k = truncate_logits(logits_BV, 1, 1.0).softmax(-1)
        torch.testing.assert_close(kept_by_k, torch.tensor([[1.0, 0, 0, 0]]))

    def test_greedy_ignores_truncation(self) -> None:
        logits_BV = torch.tensor([[1.0, 2.0, 0.5]])
        token_B, logprob_B = sample_tokens(logits_BV, [], 0.0, 1, 0.1)
        assert token_B.tolist() == [1]
        torch.testing.assert_close(logprob_B, logits_BV.log_softmax(-1)[:, 1])


class TestTransformersEngine:
    @pytest.mark.parametrize("sampling", SAMPLINGS)
    def test_behaviour_logprobs_are_the_trainers(self, engine, tiny, sampling) -> None:
        prompts = some_prompts()
        rollouts = engine.generate(prompts, sampling)
        assert [r.prompt_index for r in rollouts] == [i for i in range(len(prompts)) for _ in range(sampling.n)]
        assert all(r.prompt_ids == prompts[r.prompt_index] for r in rollouts)
        assert trainer_gap(tiny, rollouts, sampling) < 1e-4

    def test_greedy_equals_transformers_generate(self, engine, tiny) -> None:
        for rollout in engine.generate(some_prompts(), Sampling(12, temperature=0.0)):
            ids = torch.tensor([rollout.prompt_ids])
            expected = tiny.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
            assert rollout.completion_ids == expected[0, ids.shape[1] :].tolist()

    def test_the_head_gets_contiguous_states(self, engine, tiny) -> None:
        """torch multiplies a batch of slices by one copy of a frozen head for each row: 3.4 GB for 60 rows of 135M."""
        seen: list[tuple[int, bool]] = []
        tiny.requires_grad_(False)
        tiny.lm_head.register_forward_pre_hook(
            lambda _, given: seen.append((given[0].shape[1], given[0].is_contiguous()))
        )
        engine.generate(some_prompts(), Sampling(3))
        assert len(seen) == 3 and set(seen) == {(1, True)}

    @pytest.mark.parametrize("compact_frac", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("batch_tokens", [1, 60, 16384])
    def test_batching_does_not_change_the_result(self, tiny, compact_frac, batch_tokens) -> None:
        sampling = Sampling(16, temperature=1.0, n=3, seed=4, stop_token_ids=tuple(range(0, 256, 8)))
        plain = TransformersEngine(tiny, TransformersRolloutConfig()).generate(some_prompts(), sampling)
        config = TransformersRolloutConfig(batch_tokens=batch_tokens, compact_frac=compact_frac)
        other = TransformersEngine(tiny, config).generate(some_prompts(), sampling)
        assert [r.completion_ids for r in plain] == [r.completion_ids for r in other]
        assert trainer_gap(tiny, other, sampling) < 1e-4

    def test_stop_token_is_kept_and_told(self, engine) -> None:
        stop = tuple(range(0, 256, 16))
        rollouts = engine.generate(some_prompts(), Sampling(12, n=4, seed=3, stop_token_ids=stop))
        assert {r.finished for r in rollouts} == {True, False}
        for rollout in rollouts:
            assert rollout.finished == (rollout.completion_ids[-1] in stop)
            assert not set(rollout.completion_ids[:-1]) & set(stop)
            assert rollout.finished or len(rollout.completion_ids) == 12

    def test_seed_decides_and_global_randomness_stays(self, engine) -> None:
        state = torch.get_rng_state()
        first = engine.generate(some_prompts(), Sampling(12, n=2, seed=5))
        torch.rand(3)
        assert engine.generate(some_prompts(), Sampling(12, n=2, seed=5)) == first
        assert engine.generate(some_prompts(), Sampling(12, n=2, seed=6)) != first
        assert first[0].completion_ids != first[1].completion_ids
        torch.set_rng_state(state)
        engine.generate(some_prompts(), Sampling(4))
        assert torch.equal(torch.get_rng_state(), state)

    def test_score_is_the_natural_logprob(self, engine, tiny) -> None:
        sequences = [*some_prompts(), [7]]
        scores = engine.score(sequences)
        assert [len(s) for s in scores] == [len(s) - 1 for s in sequences]
        greedy = Sampling(1, temperature=0.0)
        expected = [trainer_logprobs(tiny, Rollout(s[:1], s[1:], [], True), greedy) if s[1:] else [] for s in sequences]
        assert largest_gap(scores, expected) < 1e-4

    def test_training_flags_are_put_back(self, engine, tiny) -> None:
        tiny.train()
        tiny.model.layers[0].eval()
        engine.generate(some_prompts(), Sampling(2))
        assert tiny.training
        assert not tiny.model.layers[0].training
        assert all(p.grad is None for p in tiny.parameters())

    @pytest.mark.parametrize("method", ["lora", "prompt"])
    def test_adapters_take_part(self, tiny, method) -> None:
        from peft import LoraConfig, PromptTuningConfig, get_peft_model

        config: Any = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"])
        if method == "prompt":
            config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
        model = get_peft_model(tiny, config)
        sampling = Sampling(8, temperature=1.0, n=2, seed=1)
        rollouts = TransformersEngine(model, TransformersRolloutConfig()).generate(some_prompts(), sampling)
        for rollout in rollouts:
            ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
            with torch.no_grad():
                logits_TV = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
            logprobs_TV = logits_TV[-len(rollout.completion_ids) - 1 : -1].log_softmax(-1)
            expected = logprobs_TV.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0].tolist()
            assert largest_gap([rollout.logprobs], [expected]) < 1e-4

    def test_build_takes_the_policys_own_module(self, tiny, tiny_model, tmp_path) -> None:
        engine = build_transformers(TransformersRolloutConfig(), start_of(tiny_model, tmp_path, Dtype.fp32), tiny)
        with torch.no_grad():
            tiny.lm_head.weight.mul_(-1)  # No copy was taken: what is done to the module afterwards is sampled from.
        greedy = Sampling(4, temperature=0.0)
        assert trainer_gap(tiny, engine.generate([[1, 2]], greedy), greedy) < 1e-4
        engine.sync(iter(()), 3)
        assert engine.generate([[1, 2]], Sampling(2))[0].policy_version == 3

    def test_errors_say_what_to_do(self, engine) -> None:
        with pytest.raises(DataError, match="prompt 1 has no tokens"):
            engine.generate([[1], []], Sampling(2))
        assert engine.generate([], Sampling(2)) == []
        engine.close()
        engine.close()
        with pytest.raises(TrainingError, match="closed"):
            engine.generate([[1]], Sampling(2))


class TestEntries:
    def test_entry_modules_load_neither_torch_nor_vllm(self) -> None:
        code = (
            "import sys, plugins.rollout_vllm as v, plugins.rollout_transformers as t\n"
            "assert [s.name for m in (v, t) for s in m.register_rollout_engines()] == ['vllm', 'transformers']\n"
            "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

    @pytest.mark.parametrize(
        ("config", "values"),
        [
            (VllmRolloutConfig, {"kv_cache_gb": 0}),
            (VllmRolloutConfig, {"gpu_memory_utilization": 1.5}),
            (VllmRolloutConfig, {"block_tokens": 20}),
            (VllmRolloutConfig, {"max_batch": 0}),
            (VllmRolloutConfig, {"prefill_tokens": 0}),
            (VllmRolloutConfig, {"prefill_tokens": 64, "max_batch": 65}),
            (VllmRolloutConfig, {"sync_tolerance": -1}),
            (TransformersRolloutConfig, {"batch_tokens": 0}),
            (TransformersRolloutConfig, {"compact_frac": 2}),
        ],
    )
    def test_wrong_values_are_named(self, config, values) -> None:
        with pytest.raises(ConfigError, match=next(iter(values))):
            config(**values)


@dataclass
class Pair:
    """The two engines over one model, in one number format."""

    folder: Path
    vocabulary: int
    dtype: Dtype = Dtype.fp32
    vllm: Any = None
    module: Any = None
    transformers: Any = None
    version: int = field(default=0)

    def start(self, dtype: Dtype = Dtype.fp32) -> None:
        from plugins.rollout_vllm.engine import build

        self.dtype = dtype
        start = start_of(self.folder, self.folder, dtype)
        self.module = AutoModelForCausalLM.from_pretrained(self.folder, dtype=start.dtype)
        # Fewer tokens a pass than the prompts have, so that every test meets more than one pass of them.
        config = VllmRolloutConfig(kv_cache_gb=0.25, max_batch=16, prefill_tokens=64)
        self.vllm = build(config, start, self.module)
        self.transformers = TransformersEngine(self.module, TransformersRolloutConfig())

    def sync(self) -> None:
        self.version += 1
        self.vllm.sync(self.module.named_parameters(), self.version)

    def prompts(self) -> list[list[int]]:
        return some_prompts(vocabulary=self.vocabulary)


@pytest.fixture(scope="session", params=["tiny", pytest.param("real", marks=pytest.mark.long)])
def started(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pytest.importorskip("vllm")
    folder = request.getfixturevalue(f"{request.param}_model")
    pair = Pair(folder, vocabulary=256 if request.param == "tiny" else 49152)
    pair.start()
    yield pair
    pair.vllm.close()


@pytest.fixture
def pair(started: Pair) -> Pair:
    """The engines with the weights of the checkpoint."""
    original = AutoModelForCausalLM.from_pretrained(started.folder, dtype=started.module.dtype)
    started.module.load_state_dict(original.state_dict())
    started.sync()
    return started


def perturb(module: torch.nn.Module, share: float = 0.02) -> None:
    """Change every weight, the tied embeddings too, by `share` of its size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.add_(share * parameter.abs().mean() * noise)


@pytest.mark.slow
class TestVllmEngine:
    def test_greedy_ids_are_equal(self, pair) -> None:
        greedy = Sampling(16, temperature=0.0)
        ours = pair.transformers.generate(pair.prompts(), greedy)
        theirs = pair.vllm.generate(pair.prompts(), greedy)
        assert [r.completion_ids for r in theirs] == [r.completion_ids for r in ours]
        assert largest_gap([r.logprobs for r in theirs], [r.logprobs for r in ours]) < 0.01

    @pytest.mark.parametrize("sampling", SAMPLINGS)
    def test_behaviour_logprobs_are_the_trainers_before_and_after_a_sync(self, pair, sampling) -> None:
        before = pair.vllm.generate(pair.prompts(), sampling)
        assert [r.prompt_index for r in before] == [i for i in range(6) for _ in range(sampling.n)]
        assert trainer_gap(pair.module, before, sampling) < 0.01
        perturb(pair.module)
        assert trainer_gap(pair.module, before, sampling) > 0.01, "the update must be visible"
        pair.sync()
        after = pair.vllm.generate(pair.prompts(), sampling)
        assert {r.policy_version for r in after} == {pair.version}
        assert trainer_gap(pair.module, after, sampling) < 0.01

    def test_score_follows_the_weights(self, pair) -> None:
        sequences = [*pair.prompts(), [5]]
        assert largest_gap(pair.vllm.score(sequences), pair.transformers.score(sequences)) < 0.01
        perturb(pair.module)
        pair.sync()
        scores = pair.vllm.score(sequences)
        assert largest_gap(scores, pair.transformers.score(sequences)) < 0.01
        assert pair.vllm.score(sequences) == scores
        longest = [1 + i % 9 for i in range(MAX_TOKENS)]
        assert len(pair.vllm.score([longest])[0]) == MAX_TOKENS - 1

    def test_an_update_of_the_embeddings_alone_reaches_the_tied_head(self, pair) -> None:
        with torch.no_grad():
            pair.module.get_input_embeddings().weight.mul_(1.2)
        pair.sync()
        sequences = pair.prompts()
        assert largest_gap(pair.vllm.score(sequences), pair.transformers.score(sequences)) < 0.01

    def test_the_engine_keeps_its_own_weights(self, pair) -> None:
        before = pair.vllm.score(pair.prompts())
        perturb(pair.module)
        assert pair.vllm.score(pair.prompts()) == before

    def test_weights_of_another_number_format_are_taken(self, pair) -> None:
        perturb(pair.module)
        for parameter in pair.module.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
        pair.vllm.sync(((n, p.to(torch.bfloat16)) for n, p in pair.module.named_parameters()), 9)
        assert largest_gap(pair.vllm.score(pair.prompts()), pair.transformers.score(pair.prompts())) < 0.01

    def test_same_seed_same_rollouts_even_in_a_fresh_engine(self, pair) -> None:
        sampling = Sampling(12, temperature=1.0, n=3, seed=8)
        first = pair.vllm.generate(pair.prompts(), sampling)
        assert pair.vllm.generate(pair.prompts(), sampling) == first
        assert pair.vllm.generate(pair.prompts(), Sampling(12, n=3, seed=9)) != first
        pair.vllm.sync(pair.module.named_parameters(), pair.version)
        assert pair.vllm.generate(pair.prompts(), sampling) == first
        pair.vllm.close()
        pair.vllm.close()
        with pytest.raises(TrainingError, match="closed"):
            pair.vllm.score([[1, 2]])
        pair.start()
        pair.vllm.sync(pair.module.named_parameters(), pair.version)
        assert pair.vllm.generate(pair.prompts(), sampling) == first

    def test_stop_token_is_kept_and_told(self, pair) -> None:
        stop = tuple(range(0, pair.vocabulary, 16))
        rollouts = pair.vllm.generate(pair.prompts(), Sampling(12, n=4, seed=3, stop_token_ids=stop))
        assert {r.finished for r in rollouts} == {True, False}
        for rollout in rollouts:
            assert rollout.finished == (rollout.completion_ids[-1] in stop)
            assert not set(rollout.completion_ids[:-1]) & set(stop)
            assert len(rollout.logprobs) == len(rollout.completion_ids)

    def test_the_process_is_left_alone(self, pair) -> None:
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        pair.vllm.generate(pair.prompts(), Sampling(4))
        pair.sync()
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == threads
        torch.set_num_threads(1)
        assert torch.get_num_threads() == 1
        torch.set_num_threads(threads)
        assert "vllm" not in os.environ.get("LD_PRELOAD", "")

    def test_missing_weights_stop_the_run(self, pair) -> None:
        with pytest.raises(TrainingError, match=r"1 missing \['model.norm.weight'\]"):
            pair.vllm.sync(((n, p) for n, p in pair.module.named_parameters() if n != "model.norm.weight"), 1)

    def test_too_long_prompt_is_named(self, pair) -> None:
        with pytest.raises(DataError, match="prompt 0 has 90 tokens"):
            pair.vllm.generate([[1] * 90], Sampling(8))
        assert pair.vllm.generate([], Sampling(8)) == []

    def test_bf16_stays_within_its_tolerance(self, pair) -> None:
        pair.vllm.close()
        try:
            pair.start(Dtype.bf16)
            perturb(pair.module)
            pair.sync()
            gap = largest_gap(pair.vllm.score(pair.prompts()), pair.transformers.score(pair.prompts()))
            assert gap < BF16_GAP
        finally:
            pair.vllm.close()
            pair.start(Dtype.fp32)

    def test_refuses_to_start_before_the_process_group(self, pair, monkeypatch) -> None:
        from plugins.rollout_vllm.engine import VllmEngine

        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
        with pytest.raises(PluginError, match="before the process group of 2"):
            VllmEngine(VllmRolloutConfig(), pair.folder, "fp32", 1, MAX_TOKENS)


OTHER_NAMES = """
import sys
from pathlib import Path
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from core.models.loading import load_module
from core.models.merging import checkpoint_weights
from core.settings.schema import ModelConfig, RunConfig
from plugins.rollout_vllm import VllmRolloutConfig
from plugins.rollout_vllm.engine import VllmEngine, unused_names

family, folder = sys.argv[1:]
size = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "head_dim": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128,
        "num_experts": 4, "num_experts_per_tok": 2}
kind = CONFIG_MAPPING[family]
torch.manual_seed(0)
AutoModelForCausalLM.from_config(kind(**{k: v for k, v in size.items() if hasattr(kind(), k)})).save_pretrained(folder)
cfg = RunConfig(stage=None, model=ModelConfig(source=folder))
module = load_module(Path(folder), cfg, torch.float32, "CAUSAL_LM").eval()
engine = VllmEngine(VllmRolloutConfig(kv_cache_gb=0.05), Path(folder), "fp32", 0, 96, unused_names(module))
ids = [5, 9, 33, 71, 100, 8, 61, 3, 12, 4]

def gap():
    with torch.no_grad():
        ours = module(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return max(abs(ours[i, ids[i + 1]].item() - theirs) for i, theirs in enumerate(engine.score([ids])[0]))

assert gap() < 1e-4
for version in (1, 2):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * parameter.abs().mean() * torch.randn_like(parameter))
    assert gap() > 0.01, "the update must be visible"
    engine.sync(checkpoint_weights(module), version)
    assert gap() < 1e-4, gap()
"""


@pytest.mark.long
@pytest.mark.parametrize("family", ["gpt_neox", "qwen3_moe"])
def test_families_with_other_names_in_memory_reach_vllm(family: str, tmp_path: Path) -> None:
    """In a process of its own: the first sync changes every weight, experts too, and so does the second."""
    pytest.importorskip("vllm")
    command = [sys.executable, "-c", OTHER_NAMES, family, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
