"""From a folder to a model: what is loaded is what the folder holds and the model needs, or it is refused by name."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.errors import ConfigError, ModelError, PreftuneError
from core.models.adapters import add_adapter
from core.models.architecture import read_config
from core.models.judge import judge
from core.models.loading import check_start, has_plain_names, load_module
from core.models.merging import checkpoint_weights, merged_weights
from core.models.roles import TokenModel
from core.models.start import Start
from core.settings.schema import ModelConfig, PeftConfig, RunConfig
from core.testing import tiny_model
from core.tokens.ends import end_ids

IDS = torch.tensor([[5, 9, 33, 71, 100, 8, 61, 3, 12, 4]])
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model with tied embeddings."""
    return tiny_model(tmp_path_factory.mktemp("loading") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """A LoRA adapter on it whose factors are not zero."""
    tuned = add_adapter(load(base), PeftConfig(method="lora", r=4, targets=["all-linear"]), "CAUSAL_LM")
    stir(tuned)
    folder = base.parent / "adapter"
    tuned.peft_config["default"].base_model_name_or_path = str(base)  # type: ignore[index, union-attr]
    tuned.save_pretrained(folder)  # type: ignore[operator]
    return folder


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "model"))


def run_config(folder: Path, **model: Any) -> RunConfig:
    return RunConfig(stage=None, model=ModelConfig(**{"source": str(folder), "max_length": 128, **model}))


def load(folder: Path, task: str = "CAUSAL_LM", **model: Any) -> nn.Module:
    return load_module(folder, run_config(folder, **model), torch.float32, task)


def logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


def stir(tuned: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = next(folder.glob("*.safetensors"))
    tensors = {name: tensor.clone().contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(tensors, file, metadata={"format": "pt"})


# ---- names --------------------------------------------------------------------------------------------------------

WRAPPED = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "DDP of a compiled model": lambda name: f"module._orig_mod.{name}",
    "a compiled DDP model": lambda name: f"_orig_mod.module.{name}",
    "compiled layers": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    "FSDP": lambda name: "_fsdp_wrapped_module." + name.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
    "checkpointed layers": lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
    "Lightning": lambda name: f"_forward_module.model.{name}",
    "another module's model": lambda name: f"model.{name}",
    "no head": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_wrappers_put_into_names_is_taken_off(wrapper: str, base: Path, copied: Path, tmp_path: Path) -> None:
    rewrite(copied, lambda tensors: {WRAPPED[wrapper](name): tensor for name, tensor in tensors.items()})
    module = load(copied)
    assert torch.equal(logits(module), logits(load(base)))
    assert module.generation_config.eos_token_id == load(base).generation_config.eos_token_id
    start = Start(run_config(copied), tmp_path / "scratch")
    assert start.plain != copied and has_plain_names(start.plain, start.cfg)
    module.save_pretrained(tmp_path / "again")  # type: ignore[operator]
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()


NAME = "model.layers.1.mlp.up_proj.weight"
CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "unknown prefix": (lambda t: {f"foo.{n}": x for n, x in t.items()}, "'foo.model"),
    "renamed": (lambda t: {n.replace("up_proj", "up"): x for n, x in t.items()}, "mlp.up.weight' is not known"),
    "missing": (lambda t: {n: x for n, x in t.items() if n != NAME}, f"'{NAME}' is missing"),
    "a layer less": (lambda t: {n: x for n, x in t.items() if "layers.1." not in n}, "is missing.* and 5 more"),
    "a layer more": (lambda t: t | {NAME.replace("1", "2"): t[NAME]}, "layers.2.*is not known"),
    "extra": (lambda t: t | {"v_head.summary.weight": t["model.norm.weight"]}, "'v_head.summary.weight' is not known"),
    "shape": (lambda t: t | {NAME: t[NAME][:-1]}, rf"'{NAME}' is \[127, 64\], and must be \[128, 64\]"),
    "integers": (lambda t: t | {NAME: t[NAME].to(torch.int8)}, f"'{NAME}' is stored as I8"),
    "twice": (lambda t: t | {NAME.removeprefix("model."): t[NAME]}, "are one tensor of the model"),
    "twice, once wrapped": (lambda t: t | {f"_orig_mod.{NAME}": t[NAME]}, "comes twice"),
    "tied to another": (lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1}, "weights hold two"),
    "neither end": (lambda t: {n: x for n, x in t.items() if "embed" not in n}, "embed_tokens.weight' is missing"),
    "nothing": (lambda t: {"x": torch.zeros(1)}, "asks for 2 layers"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_do_not_fit_are_refused_by_name(change: str, copied: Path) -> None:
    how, message = CHANGES[change]
    rewrite(copied, how)
    with pytest.raises(ModelError, match=message):
        load(copied)


def test_a_tied_tensor_may_stand_under_either_name_or_both(base: Path, copied: Path) -> None:
    end = "model.embed_tokens.weight"
    rewrite(copied, lambda t: t | {"lm_head.weight": t[end]})
    assert torch.equal(logits(load(copied)), logits(load(base)))
    rewrite(copied, lambda t: {n: x for n, x in t.items() if n != end})
    assert torch.equal(logits(load(copied)), logits(load(base)))
    assert not has_plain_names(copied, run_config(copied)), "an engine would look for the embedding"


def test_a_scorer_keeps_its_head_and_a_new_one_is_drawn_only_where_there_is_none(copied: Path) -> None:
    fresh = load(copied, "SEQ_CLS")
    fresh.save_pretrained(copied)  # type: ignore[operator]
    assert torch.equal(load(copied, "SEQ_CLS").score.weight, fresh.score.weight)
    rewrite(copied, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]})  # a head that was left in
    load(copied, "SEQ_CLS")
    rewrite(copied, lambda t: {f"module.{n}": x for n, x in t.items()})
    assert torch.equal(load(copied, "SEQ_CLS").score.weight, fresh.score.weight)
    with pytest.raises(ModelError, match=r"'score.weight' is \[2, 64\], and must be \[1, 64\]"):
        rewrite(copied, lambda t: t | {"module.score.weight": torch.zeros(2, 64)})
        load(copied, "SEQ_CLS")
    with pytest.raises(ModelError, match=r"'model.norm.weight' is missing"):
        rewrite(copied, lambda t: {n: x for n, x in t.items() if "model.norm" not in n and "score" not in n})
        load(copied, "SEQ_CLS")
    with pytest.raises(ModelError, match=r"'score.weight' is not known"):  # a reward model is no policy
        rewrite(copied, lambda t: {"model.norm.weight": torch.ones(64), "score.weight": torch.zeros(1, 64), **t})
        load(copied)


def changed_at_random(folder: Path, rng: random.Random) -> None:
    """One tensor of the folder renamed, taken away, added or of another shape."""

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = rng.choice(sorted(tensors))
        tensor, how = tensors[name], rng.choice(("rename", "drop", "add", "grow", "cut", "turn"))
        if how in ("rename", "drop"):
            del tensors[name]
        segments = name.split(".")
        at = rng.randrange(len(segments))
        segments[at] += rng.choice(("x", "_2", "0"))
        if how in ("rename", "add"):
            tensors[".".join(segments)] = tensor
        shaped = {"grow": torch.cat([tensor, tensor]), "cut": tensor[: len(tensor) // 2], "turn": tensor[None]}
        return tensors | ({name: shaped[how]} if how in shaped else {})

    rewrite(folder, change)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.long) for n in range(4, 100))])
def test_no_random_change_starts_silently(seed: int, base: Path, adapter: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    for folder in (base, adapter):
        copy = Path(shutil.copytree(folder, tmp_path / folder.name))
        changed_at_random(copy, rng)
        with pytest.raises(ModelError, match=r"is missing|is not known|must be|cannot be put together"):
            load(copy)


# ---- adapters -----------------------------------------------------------------------------------------------------


def test_an_adapter_under_wrapped_names_is_the_same_adapter(adapter: Path, tmp_path: Path) -> None:
    expected = logits(load(adapter))
    for number, wrap in enumerate((
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
    )):  # fmt: skip
        copy = Path(shutil.copytree(adapter, tmp_path / str(number)))
        rewrite(copy, lambda tensors, wrap=wrap: {wrap(name): tensor for name, tensor in tensors.items()})  # type: ignore[misc]
        assert torch.equal(logits(load(copy)), expected)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown type": ({"peft_type": "LORAA"}, "no adapter of the type 'LORAA'. Did you mean 'LORA'"),
    "no type": ({"peft_type": None}, "no adapter of the type 'None'"),
    "a type of another shape": ({"peft_type": ["LORA"]}, "no adapter of the type"),
    "text for a rank": ({"r": "abc"}, "cannot be put on its base model|cannot be used"),
    "another rank": ({"r": 8}, r"is \[4, 64\], and must be \[8, 64\]"),
    "no rank": ({"r": 0}, "cannot be put on its base model"),
    "an unknown field": ({"lora_alhpa": 4}, "no field 'lora_alhpa'. Did you mean 'lora_alpha'"),
    "other targets": ({"target_modules": ["q_proj"]}, "is not known"),
    "no such targets": ({"target_modules": ["w1"]}, "cannot be put on its base model"),
    "another method": ({"peft_type": "LOHA"}, "no field '"),
    "a method of several adapters": ({"peft_type": "XLORA"}, "cannot be read: it mixes adapters"),
    "Megatron": ({"megatron_config": {"a": 1}}, "Megatron"),
    "a prompt method": ({"peft_type": "PROMPT_TUNING", "lora_alpha": None, "r": None}, "no field|no stage can start"),
}


@pytest.mark.parametrize("change", CONFIGS)
def test_an_adapter_with_another_config_is_refused(change: str, adapter: Path, tmp_path: Path) -> None:
    values, message = CONFIGS[change]
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    edit(copy / "adapter_config.json", lambda config: config.update(values))
    with pytest.raises(ModelError, match=message) as raised:
        load(copy)
    assert str(copy) in str(raised.value)


def test_a_base_that_is_the_adapter_itself_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    own, other = (Path(shutil.copytree(adapter, tmp_path / name)) for name in ("own", "other"))
    for folder, named in ((own, own), (other, own)):
        shutil.copy(base / "config.json", folder)
        edit(
            folder / "adapter_config.json",
            lambda config, named=named: config.update(base_model_name_or_path=str(named)),
        )
    for folder in (own, other):
        with pytest.raises(ModelError, match="names itself"):
            load(folder)
    edit(own / "adapter_config.json", lambda config: config.update(base_model_name_or_path=str(other)))
    with pytest.raises(ModelError, match="names itself"):
        load(own)


def test_nothing_starts_from_an_adapter_that_cannot_be_merged(base: Path, tmp_path: Path) -> None:
    tuned = add_adapter(load(base), PeftConfig(method="prompt_tuning"), "CAUSAL_LM")
    tuned.peft_config["default"].base_model_name_or_path = str(base)  # type: ignore[index, union-attr]
    tuned.save_pretrained(tmp_path / "prompt")  # type: ignore[operator]
    for refused in (check_start, lambda folder, cfg: load(folder)):
        with pytest.raises(ModelError, match="no stage can start from a 'prompt_tuning' adapter") as raised:
            refused(tmp_path / "prompt", ModelConfig(source="x"))
        assert f"model.source={base}" in raised.value.mend


# ---- what a folder may not do -------------------------------------------------------------------------------------

OWN_CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize("word", ["false", "False", "no", "NO", "0", "off", "null", "none", "", None])
def test_a_no_to_remote_code_is_a_no(word: str | None) -> None:
    assert ModelConfig(source="x", trust_remote_code=word).trust_remote_code is None


@pytest.mark.parametrize(
    "word", ["true", "yes", "1", "on", "main", "v1.0", "refs/pr/1", "abc123", COMMIT[:-1], COMMIT + "0"]
)
def test_only_a_whole_commit_lets_remote_code_run(word: str) -> None:
    with pytest.raises(ConfigError, match="takes the commit whose code may run") as raised:
        ModelConfig(source="x", trust_remote_code=word)
    assert raised.value.exit_code == 2
    assert ModelConfig(source="x", trust_remote_code=COMMIT.upper()).trust_remote_code == COMMIT


def test_no_code_of_the_folder_runs(copied: Path) -> None:
    for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (copied / name).write_text(OWN_CODE)
    (copied / "custom_generate").mkdir()
    (copied / "custom_generate" / "generate.py").write_text(OWN_CODE)
    classes = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    edit(copied / "config.json", lambda config: config.update(auto_map=classes))
    tokenizer = {"AutoTokenizer": [None, "tokenization_own.Own"]}
    edit(copied / "tokenizer_config.json", lambda config: config.update(auto_map=tokenizer))
    start = Start(run_config(copied, trust_remote_code="false"), copied / "scratch")
    assert start.codec.eos and load(copied, trust_remote_code="off")
    edit(copied / "config.json", lambda config: config.update(model_type="own"))
    with pytest.raises(ModelError, match="code of its own, which may not run"):
        load(copied)
    assert not list(copied.rglob("ran"))
    edit(copied / "config.json", lambda config: config.update(auto_map={"AutoConfig": "owner/other--modeling.Own"}))
    with pytest.raises(ModelError, match="code of another repository"):
        load(copied, trust_remote_code=COMMIT)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return open, ("exploded",)  # raises where it is unpickled: there is no such file


def test_pickles_beside_the_weights_are_never_read(copied: Path, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    bomb = pickle.dumps(Bomb())
    for folder in (copied, copy):
        for name in ("pytorch_model.bin", "adapter_model.bin", "model.pt", "training_args.bin"):
            (folder / name).write_bytes(bomb)
    load(copied), load(copy)
    edit(copied / "config.json", lambda config: config.update(transformers_weights="adapter_model.bin"))
    load(copied)
    (copied / "model.safetensors").rename(copied / "other.safetensors")
    with pytest.raises(ModelError, match=r"no model.safetensors, nor model.safetensors.index.json"):
        load(copied)
    for name in ("pytorch_model.bin", "../base/model.safetensors", "no.safetensors", "config.json"):
        index = {"metadata": {}, "weight_map": {"a": "other.safetensors", "b": name}}
        (copied / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError, match="the index names"):
            load(copied)
    (copy / "adapter_model.safetensors").rename(copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load(copy)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["owner/kernel", "kernels-community/flash-attn", "paged|owner/kernel@main"])
def test_a_config_chooses_no_kernel(key: str, value: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetched)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_paged_flash_attention", fetched)
    edit(copied / "config.json", lambda config: config.update({key: value, "experts_implementation": value}))
    assert load(copied).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "mxfp4", "compressed-tensors"])
def test_quantized_weights_are_told(method: str, copied: Path) -> None:
    edit(copied / "config.json", lambda config: config.update(quantization_config={"quant_method": method}))
    with pytest.raises(ModelError, match=rf"quantized \({method}\)"):
        load(copied)
    edit(copied / "config.json", lambda config: config.update(quantization_config=None))
    load(copied)


# ---- kinds of model -----------------------------------------------------------------------------------------------

KINDS = {
    "bert": "an encoder", "roberta": "an encoder", "modernbert": "an encoder", "deberta-v2": "an encoder",
    "t5": "an encoder-decoder", "bart": "an encoder-decoder", "pegasus": "an encoder-decoder",
    "whisper": "a model of speech", "wav2vec2": "a model of speech", "vit": "a model of images",
    "llava": "a model of images and text", "qwen2_vl": "a model of images and text", "clip": "a model of images",
    "sam": "no language model",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_other_kinds_of_model_are_named(kind: str, task: str, copied: Path) -> None:
    from transformers import CONFIG_MAPPING

    CONFIG_MAPPING[kind]().save_pretrained(copied)
    with pytest.raises(ModelError, match=rf"'{kind}' is {KINDS[kind]};"):
        load(copied, task)


def test_an_encoder_that_was_made_a_decoder_is_let_through(tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(is_decoder=True).save_pretrained(tmp_path)
    assert read_config(tmp_path, remote_code=False).is_decoder


@pytest.mark.parametrize(("kind", "learned"), [("gpt2", True), ("opt", True), ("gpt_neox", False)])
def test_rows_longer_than_learned_positions_are_refused(kind: str, learned: bool, tmp_path: Path) -> None:
    model = TokenModel(load(family(kind, tmp_path / "model"))).eval()  # of 64 positions
    judge(model, 64)
    if not learned:  # computed from the place
        judge(model, 65)
        return
    with pytest.raises(ModelError, match=r"64 positions, fewer than model\.max_length=65"):
        judge(model, 65)


# ---- damaged files ------------------------------------------------------------------------------------------------

VALUES = [None, -1, 0, 3, 10**12, 10**30, 1.5, float("nan"), "abc", "", True, [], {}, [1, 2], {"a": 1}, "../x", "\0"]


def damaged(folder: Path, rng: random.Random) -> None:
    """One file of the folder cut, emptied, lost, or with another value somewhere."""
    file = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    content, how = file.read_bytes(), rng.choice(("cut", "noise", "flip", "lose", "folder", *["value"] * 6))
    if how == "cut":
        file.write_bytes(content[: rng.choice((0, rng.randrange(len(content))))])
    elif how == "noise":
        file.write_bytes(rng.randbytes(rng.choice((1, 8, 100, 5000))))
    elif how == "flip":
        at = rng.randrange(min(len(content), 2000))
        file.write_bytes(content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :])
    elif how in ("lose", "folder"):
        file.unlink()
        if how == "folder":
            file.mkdir()
    else:
        file = rng.choice(sorted(folder.glob("*.json")))
        value = part = json.loads(file.read_text())
        while inner := [
            one for one in (part.values() if isinstance(part, dict) else part) if one and isinstance(one, (dict, list))
        ]:
            if rng.random() < 0.5:
                break
            part = rng.choice(inner)
        key = rng.choice(sorted(part)) if isinstance(part, dict) else rng.randrange(len(part))
        if rng.random() < 0.2:
            del part[key]
        else:
            part[key] = rng.choice(VALUES)
        file.write_text(json.dumps(value))


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 20))])
def test_damaged_folders_are_told_and_never_crash(seed: int, base: Path, adapter: Path, tmp_path: Path) -> None:
    for number in range(20):
        rng = random.Random(f"{seed} {number}")
        folder = Path(shutil.copytree(rng.choice((base, base, adapter)), tmp_path / str(number)))
        damaged(folder, rng)
        start = Start(run_config(folder), tmp_path / f"{number}-scratch")
        try:
            if (folder / "tokenizer.json").exists():
                _ = start.codec
            load(folder)
        except PreftuneError as error:
            assert str(folder) in str(error)


def test_more_layers_than_tensors_are_not_made(copied: Path) -> None:
    edit(copied / "config.json", lambda config: config.update(num_hidden_layers=10**9))
    with pytest.raises(ModelError, match="asks for 1000000000 layers"):
        load(copied)


# ---- names in memory and in checkpoints ---------------------------------------------------------------------------

SMALL = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "num_experts": 4,
    "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "first_k_dense_replace": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = ("llama", "gpt_neox", "gpt2", "qwen3_moe", "deepseek_v3", "mixtral", "glm4_moe", "olmoe")


def family(name: str, folder: Path) -> Path:
    """A small random model of a family, as transformers saves it."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind = CONFIG_MAPPING[name]
    given = {key: value for key, value in SMALL.items() if hasattr(kind(), key)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(kind(**given))
        for key, buffer in model.named_buffers():
            if "correction_bias" in key:  # saved, though no parameter
                buffer.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_go_out_under_the_names_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = family(name, tmp_path / "model")
    saved = load_file(folder / "model.safetensors")
    module = load(folder)
    given = dict(checkpoint_weights(module))
    assert given.keys() == saved.keys() and all(torch.equal(given[key], saved[key]) for key in saved)
    assert has_plain_names(folder, run_config(folder))

    tuned = add_adapter(module, PeftConfig(method="lora", r=4, targets=["all-linear"]), "CAUSAL_LM")
    stir(tuned)
    merged = {key: tensor.contiguous() for key, tensor in checkpoint_weights(tuned)}
    assert merged.keys() == saved.keys()
    shutil.copytree(folder, tmp_path / "merged")
    save_file(merged, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    after = logits(tuned)
    assert (after - logits(load(folder))).abs().max() > 1e-2, "the adapter must be visible"
    assert (logits(plain) - after).abs().max() < 1e-5


@pytest.mark.parametrize("lost", ["0.gate_proj", "2.down_proj", "3.up_proj"])
@pytest.mark.parametrize("new", ["9", ""])
def test_an_expert_less_or_under_another_number_is_told(lost: str, new: str, tmp_path: Path) -> None:
    folder = family("qwen3_moe", tmp_path / "model")
    name = f"model.layers.1.mlp.experts.{lost}.weight"

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensor = tensors.pop(name)
        return tensors | ({name.replace(lost, new + lost[1:]): tensor} if new else {})

    rewrite(folder, change)
    with pytest.raises(ModelError, match=rf"experts\.{lost[0]}|experts\.gate_up_proj|cannot be put together|down_proj"):
        load(folder)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_tied_layers_that_are_trained_whole_are_merged_once(saved: list[str], base: Path) -> None:
    cfg = PeftConfig(method="lora", r=4, targets=["all-linear"], options={"modules_to_save": saved})
    tuned = add_adapter(load(base), cfg, "CAUSAL_LM")
    tuned.get_input_embeddings().weight.data.mul_(1.5)  # type: ignore[operator]
    weights = dict(merged_weights(tuned))
    assert "lm_head.weight" not in weights
    assert torch.equal(weights["model.embed_tokens.weight"], 1.5 * load(base).get_input_embeddings().weight)  # type: ignore[operator]


@pytest.mark.parametrize("targets", [["all-linear"], ["all-linear", "embed_tokens"]])
def test_all_linear_goes_with_a_choice_of_layers_and_with_other_names(targets: list[str], base: Path) -> None:
    options = {} if "embed_tokens" in targets else {"layers_to_transform": [1]}
    if "embed_tokens" in targets:
        shutil.copytree(base, base.parent / "untied", dirs_exist_ok=True)
        edit(base.parent / "untied" / "config.json", lambda config: config.update(tie_word_embeddings=False))
        rewrite(base.parent / "untied", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]})
        base = base.parent / "untied"
    tuned = add_adapter(load(base), PeftConfig(method="lora", targets=targets, options=options), "CAUSAL_LM")
    adapted = {name.partition(".lora_")[0] for name, p in tuned.named_parameters() if p.requires_grad}
    linear = {f"base_model.model.model.layers.{n}.{part}" for n in ([1] if options else [0, 1]) for part in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}  # fmt: skip
    assert adapted == linear | ({"base_model.model.model.embed_tokens"} if not options else set())


# ---- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ends"),
    [
        (None, (7,)),
        (7, (7,)),
        (9, (7, 9)),
        ([9, 7, 3], (7, 9, 3)),
        ([], (7,)),
        ("9", (7,)),
        ([True, 400, -1, 9], (7, 9)),
    ],
)
def test_every_end_that_a_model_names_is_one(value: Any, ends: tuple[int, ...], tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
        assert end_ids(tmp_path, 7, 320) == ends
    (tmp_path / "generation_config.json").write_text("{")
    assert end_ids(tmp_path, 7, 320) == ends
