"""Every adapter method of peft from its name in the config to a trained, saved, reloaded and merged model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.config.combinations import (
    FAILING,
    NEEDED_PACKAGES,
    PROMPT_LEARNING,
    PROVEN,
    QUANTISED,
    UNMERGEABLE,
    check_combinations,
)
from core.config.typed import typed_config
from core.errors import ConfigError, ModelError
from core.models import adapters
from core.models.adapters import (
    add_adapter,
    keep_differentiable,
    plan_ranks,
    quantization_config,
)
from core.models.judge import judge
from core.models.merging import is_quantized, merged_weights
from core.models.packed import PromptGroup, pack
from core.models.roles import Models, ScoreModel, TokenModel
from core.models.saved_adapter import load_adapter
from core.settings.peft_methods import methods
from core.settings.schema import PeftConfig, Quant, RunConfig
from core.testing import tiny_model, tiny_pairs
from core.training.optim import MasterOptimizer, decay_groups, round_into
from plugins.optimizers import AdamWConfig
from plugins.optimizers.built import adamw

ADAMW = partial(adamw, AdamWConfig())

IDS = torch.tensor([[5, 9, 33, 71, 100, 8, 61, 300, 12, 4]])
ROW = pack(
    [
        PromptGroup([5, 9, 33, 71], [[100, 8, 61], [300, 12, 4, 2]]),
        PromptGroup([7, 11, 2], [[40, 41, 42, 43, 44]]),
    ]
)


@dataclass(frozen=True)
class Case:
    """One method as a user would name it. start: largest logit change by the fresh adapter; None where it is large by
    nature."""

    words: tuple[str, ...]
    start: float | None = 1e-6

    @property
    def method(self) -> str:
        return self.words[0].removeprefix("peft=")


def case(words: str, start: float | None = 1e-6) -> Any:
    made = Case(tuple(words.split()), start)
    return pytest.param(made, id=re.sub(r"peft\.(options\.)?|peft=", "", words).replace(" ", ","))


CASES = [
    case("peft=lora"),
    case("peft=dora"),
    case("peft=rslora"),
    case("peft=pissa peft.r=4 peft.alpha=4", 1e-5),
    case("peft=olora peft.r=4 peft.alpha=4", 1e-5),
    case("peft=lora peft.options.init_lora_weights=orthogonal", 1e-5),
    case("peft=lora peft.options.init_lora_weights=gaussian peft.dropout=0.1"),
    case("peft=lora peft.options.modules_to_save=[embed_tokens]"),
    case("peft=lora peft.options.modules_to_save=[norm]"),
    case("peft=lora peft.options.trainable_token_indices=[5,9]"),
    case("peft=adalora peft.r=6"),
    case("peft=beft"),
    case("peft=boft"),
    case("peft=c3a peft.options.block_size=32"),
    case("peft=cartridge", None),
    case("peft=deft", 1e-5),
    case("peft=delora"),
    case("peft=fourierft"),
    case("peft=frod", 1e-5),
    case("peft=glora"),
    case("peft=gralora"),
    case("peft=hira"),
    case("peft=hra", 1e-5),
    case("peft=ia3"),
    case("peft=lily"),
    case("peft=ln_tuning"),
    case("peft=loha"),
    case("peft=lokr"),
    case("peft=miss"),
    case("peft=oft"),
    case("peft=oft peft.r=8"),
    case("peft=osf", 1e-5),
    case("peft=p_tuning", None),
    case("peft=peanut"),
    case("peft=prefix_tuning", None),
    case("peft=prompt_tuning", None),
    case("peft=psoft"),
    case("peft=pvera"),
    case("peft=randlora"),
    case("peft=road peft.options.group_size=16"),
    case("peft=shira peft.r=8"),
    case("peft=supertuning"),
    case("peft=tinylora"),
    case("peft=trainable_tokens peft.options.token_indices=[5,9]"),
    # Their vectors start at small random values: near the base model, not on it.
    case("peft=unilora", 0.05),
    case("peft=vblora peft.options.vector_length=32 peft.options.num_vectors=16", 0.1),
    case("peft=vera"),
    case("peft=waveft peft.options.n_frequency=64"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with tied embeddings."""
    return tiny_model(tmp_path_factory.mktemp("adapters") / "model")


@pytest.fixture(scope="module")
def configure(folder: Path):
    """Words of a command line to a typed config."""
    data = tiny_pairs(folder.parent / "pairs.jsonl")

    def make(*words: str) -> RunConfig:
        common = ["model=custom", f"model.source={folder}", f"data.path={data}", "tracker=none"]
        if not any(word.startswith("stage=") for word in words):
            common.append("stage=sft")
        return typed_config([*common, *words])[0]

    return make


def load(folder: Path, dtype: torch.dtype = torch.float32, quant: Quant = Quant.none) -> nn.Module:
    from transformers import AutoModelForCausalLM

    extra = {} if quant is Quant.none else {"quantization_config": quantization_config(quant, dtype)}
    return keep_differentiable(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **extra).eval())


def logits(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :].float()


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().clone() for part in (module.named_parameters(), module.named_buffers())
        for name, tensor in part
    }  # fmt: skip


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def train(model: TokenModel, steps: int = 2, lr: float = 0.02) -> list[float]:
    """AdamW of the step loop on packed rows; loss before each step."""
    optimizer = MasterOptimizer(decay_groups(model.trainable(), lr, 0.0), ADAMW)
    losses = []
    for _ in range(steps):
        loss = -model(ROW)[0].mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def adapted(cfg: RunConfig, folder: Path, dtype=torch.float32, quant=Quant.none) -> TokenModel:
    torch.manual_seed(0)
    module = add_adapter(load(folder, dtype, quant), cfg.peft, "CAUSAL_LM")
    plan_ranks(module, cfg.peft, 20)
    return TokenModel(module).eval()


def plain_from(folder: Path, weights: dict[str, torch.Tensor], dtype=torch.float32) -> nn.Module:
    plain = load(folder, dtype)
    missing, unexpected = plain.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return plain


def test_the_cases_are_all_methods_that_the_table_lets_through():
    tried = {item.values[0].method for item in CASES} - {"dora", "rslora", "pissa", "olora"}
    assert tried | {"none"} == PROVEN
    assert PROVEN | set(FAILING) | set(NEEDED_PACKAGES) | {"none"} == {*methods(), "none"}


@pytest.mark.parametrize("item", CASES)
def test_method_trains_saves_reloads_and_merges(item: Case, configure, folder: Path, tmp_path: Path):
    from peft import PeftModel

    cfg = configure(*item.words)
    base = load(folder)
    start, model = logits(base), adapted(cfg, folder)
    fresh = logits(model.module)
    judge(model, 64)
    if item.start is not None:
        assert gap(fresh, start) <= item.start
    keeps_base = item.method not in ("pissa", "olora")
    if keeps_base:
        with model.adapter_off():
            assert torch.equal(logits(model.module), start)

    trained = {name for name, _ in model.trainable()}
    before = tensors(model.module)
    losses = train(model)
    moved = changed(before, tensors(model.module))
    assert moved and moved <= trained, moved - trained
    assert all(parameter.grad is None for name, parameter in model.module.named_parameters() if name not in trained)
    after = logits(model.module)
    assert gap(after, fresh) > 1e-4 and losses[1] < losses[0] + 1
    if keeps_base:
        with model.adapter_off():
            assert torch.equal(logits(model.module), start)

    model.module.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(load(folder), tmp_path, autocast_adapter_dtype=False).eval()
    assert gap(logits(reloaded), after) <= 1e-6
    assert torch.equal(logits(load_adapter(load(folder), tmp_path)), logits(reloaded))

    if item.method in UNMERGEABLE:
        with pytest.raises(ModelError, match="cannot be merged"):
            list(merged_weights(model.module))
        return
    before = tensors(model.module)
    weights = dict(merged_weights(model.module))
    assert not changed(before, tensors(model.module)) and torch.equal(logits(model.module), after)
    ours = logits(plain_from(folder, weights))
    assert gap(ours, after) <= 1e-5
    assert gap(ours, logits(reloaded.merge_and_unload())) <= 1e-5


@pytest.mark.parametrize("item", CASES)
def test_method_in_bf16(item: Case, configure, folder: Path, tmp_path: Path):
    from peft import PeftModel

    cfg = configure(*item.words, "runtime.dtype=bf16")
    model = adapted(cfg, folder, torch.bfloat16)
    judge(model, 64)
    assert not torch.is_autocast_enabled("cpu")
    train(model)
    after = logits(model.module)
    model.module.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(load(folder, torch.bfloat16), tmp_path, autocast_adapter_dtype=False).eval()
    assert gap(logits(reloaded), after) == 0
    if item.method in UNMERGEABLE:
        return
    before = tensors(model.module)
    weights = dict(merged_weights(model.module))
    assert not changed(before, tensors(model.module)) and torch.equal(logits(model.module), after)
    ours = logits(plain_from(folder, weights, torch.bfloat16))
    assert gap(ours, after) <= 0.2
    assert gap(ours, logits(reloaded.merge_and_unload())) <= 1e-5


@pytest.mark.parametrize("word", sorted({f"peft={name}" for name in [*FAILING, *NEEDED_PACKAGES]}))
def test_other_methods_are_refused_before_anything_is_loaded(word: str, configure, monkeypatch):
    monkeypatch.setattr("core.config.combinations.importable", lambda name: name != "sklearn")
    with pytest.raises(ConfigError, match="peft method"):
        configure(word)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("peft=trainable_tokens", "needs peft.options.token_indices"),
        ("peft=hra peft.r=3", "odd rank"),
        ("peft=lora peft.options.init_lora_weights=pissa_niter_4", "drawn at random"),
        ("peft=lora peft.options.init_lora_weights=eva", "pass over data"),
        ("peft=lora peft.options.init_lora_weights=loftq", "quantised ones of its own"),
        ("peft=prefix_tuning peft.merge=true", "cannot be done"),
        ("peft=lily peft.merge=true", "depends on the input"),
        ("peft=prompt_tuning stage=reward", "scoring model"),
        ("peft=trainable_tokens peft.options.token_indices=[5] stage=rlhf algorithm=ppo", "scoring model"),
        ("peft=lora peft.dropout=0.1 stage=rlhf algorithm=ppo", "dropout"),
        ("peft=ia3 quant=nf4", "does not work on nf4"),
        ("peft=pissa quant=nf4", "does not work on nf4"),
        ("peft=dora quant=int8", "does not work on int8"),
    ],
)
def test_combinations_that_cannot_work_are_refused(words: str, message: str, configure):
    with pytest.raises(ConfigError, match=message):
        configure(*words.split())


def test_dropout_is_let_through_where_nothing_is_sampled(configure):
    assert configure("peft=lora", "peft.dropout=0.1").peft.dropout == 0.1
    assert configure("peft=lora", "peft.dropout=0.1", "stage=rlhf", "algorithm=dpo").peft.dropout == 0.1


def test_dropout_works_inside_the_block_alone(configure, folder: Path):
    model = adapted(configure("peft=lora", "peft.dropout=0.5"), folder)
    train(model)
    still = logits(model.module)
    with adapters.adapter_dropout(model.module):
        first, second = logits(model.module), logits(model.module)
        assert not model.base.model.training
    assert gap(first, second) > 1e-3
    assert torch.equal(logits(model.module), still) and not any(part.training for part in model.module.modules())


def test_words_and_fields_that_a_method_does_not_have(folder: Path):
    for cfg, where in (
        (PeftConfig(method="ln_tuning", r=4), "peft.r"),
        (PeftConfig(method="lora", options={"rankk": 4}), "peft.options"),
        (PeftConfig(method="nosuch"), "peft.method"),
        (PeftConfig(method="adalora", r=4, options={"target_r": 4}), "peft.options.target_r"),
    ):
        with pytest.raises(ConfigError) as caught:
            add_adapter(load(folder), cfg, "CAUSAL_LM")
        assert caught.value.where == where and caught.value.mend
    with pytest.raises(ModelError, match="block size") as refused:
        add_adapter(load(folder), PeftConfig(method="c3a", options={"block_size": 7}), "CAUSAL_LM")
    assert refused.value.mend


def test_our_words_reach_the_fields_that_the_method_reads(folder: Path):
    def config(**words: Any) -> Any:
        module = add_adapter(load(folder), PeftConfig(**words), "CAUSAL_LM")
        plan_ranks(module, PeftConfig(**words), 10)
        return module.active_peft_config

    adalora = config(method="adalora", r=9)
    assert (adalora.init_r, adalora.target_r, adalora.total_step) == (9, 6, 10)
    assert config(method="hira", r=3, dropout=0.1).hira_dropout == 0.1
    assert config(method="vera", dropout=0.1).vera_dropout == 0.1
    oft = config(method="oft", r=8)
    assert (oft.r, oft.oft_block_size) == (8, 0)
    assert config(method="lora", alpha=32).lora_alpha == 32


@pytest.mark.parametrize("option", [{"target_modules": ["q_proj", "embed_tokens"]}, {"target_modules": ["lm_head"]}])
def test_low_rank_factors_on_tied_embeddings_are_refused(option: dict[str, Any], folder: Path):
    with pytest.raises(ModelError, match="shares its weights"):
        add_adapter(load(folder), PeftConfig(method="lora", options=option), "CAUSAL_LM")


def test_an_untied_head_can_be_adapted(folder: Path, tmp_path: Path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for words in ({"targets": ["q_proj", "lm_head"]}, {"options": {"modules_to_save": ["lm_head"]}}):
        model = TokenModel(add_adapter(load(tmp_path), PeftConfig(method="lora", **words), "CAUSAL_LM")).eval()
        judge(model, 64)
        train(model)
        assert gap(logits(plain_from(tmp_path, dict(merged_weights(model.module)))), logits(model.module)) <= 1e-5


# -- quantised bases ---------------------------------------------------------------------------------------------------

_QUANT_WORDS = {item.values[0].method: item.values[0].words for item in reversed(CASES)}
_QUANT_METHODS = sorted(QUANTISED["nf4"] | QUANTISED["int8"] | {"dora"})
_BOTH = {"lora", "dora", "adalora", "prompt_tuning"}
"""Methods that `make test` tries in both number formats; of the others each with each quantisation in one of them."""
QUANT_CASES = [
    pytest.param(method, quant, dtype, id=f"{method}-{quant}-{dtype}",
                 marks=pytest.mark.long if method not in _BOTH and (number + at + place) % 2 else ())
    for place, quant in enumerate(("nf4", "int8"))
    for number, method in enumerate(_QUANT_METHODS) if method in QUANTISED[quant] or (method, quant) == ("dora", "nf4")
    for at, dtype in enumerate(("float32", "bfloat16"))
]  # fmt: skip


@pytest.mark.parametrize(("method", "quant", "dtype"), QUANT_CASES)
def test_method_on_quantised_weights(method: str, quant: str, dtype: str, configure, folder: Path, tmp_path: Path):
    from peft import PeftModel

    number_format = getattr(torch, dtype)
    cfg = configure(*_QUANT_WORDS[method], f"quant={quant}")
    base = load(folder, number_format, cfg.quant)
    start, model = logits(base), adapted(cfg, folder, number_format, cfg.quant)
    judge(model, 64)
    packed = {name: part.weight for name, part in model.base.named_modules() if is_quantized(part)}
    assert packed and all(weight.dtype in (torch.uint8, torch.int8) for weight in packed.values())
    bytes_before = {name: weight.detach().clone() for name, weight in packed.items()}
    losses = train(model, steps=6)
    assert losses[-1] < losses[0] - 0.1
    after = logits(model.module)
    assert all(torch.equal(weight, bytes_before[name]) for name, weight in packed.items())
    with model.adapter_off():
        assert torch.equal(logits(model.module), start)

    model.module.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(
        load(folder, number_format, cfg.quant), tmp_path, autocast_adapter_dtype=False
    ).eval()
    assert torch.equal(logits(reloaded), after)
    if method in UNMERGEABLE:
        return
    weights = dict(merged_weights(model.module))
    assert torch.equal(logits(model.module), after)
    assert all(weight.dtype is number_format for weight in weights.values())
    # int8 layers round their inputs too, which plain ones do not.
    bound = 0.5 if quant == "int8" else 1e-5 if dtype == "float32" else 0.2
    assert gap(logits(plain_from(folder, weights, number_format)), after) <= bound


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_a_merged_quantised_layer_is_what_it_stands_for_plus_the_delta(quant: str, configure, folder: Path):
    import bitsandbytes as bnb

    model = adapted(configure("peft=lora", f"quant={quant}"), folder, quant=Quant(quant))
    train(model)
    weights = dict(merged_weights(model.module))
    for path, layer in model.base.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        inner = layer.get_base_layer()
        if quant == "nf4":
            stands_for = bnb.functional.dequantize_4bit(inner.weight.data, inner.weight.quant_state)
        else:
            stands_for = bnb.functional.int8_vectorwise_dequant(inner.weight.data, inner.state.SCB)
        assert gap(weights[f"{path}.weight"], stands_for + layer.get_delta_weight("default")) <= 1e-6


# -- number formats ----------------------------------------------------------------------------------------------------


def test_small_updates_survive_in_bf16(configure, folder: Path):
    """Steps of 1e-5 on weights near 0.1, where bf16 has nothing between 0.1 and 0.1005."""
    cfg = configure("peft=lora")
    ends = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = adapted(cfg, folder, dtype)
        assert {parameter.dtype for _, parameter in model.trainable()} == {dtype}
        with torch.no_grad():
            for _, parameter in model.trainable():
                parameter.fill_(0.1)
        optimizer = MasterOptimizer(decay_groups(model.trainable(), 1e-5, 0.0), ADAMW)
        for _ in range(5):
            for _, parameter in model.trainable():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        start = torch.tensor(0.1, dtype=dtype).item()
        ends[dtype] = [(master - start).mean().item() for master in optimizer.masters]
        moved = torch.cat([(parameter.detach().float() - start).flatten() for _, parameter in model.trainable()])
        assert moved.mean().item() == pytest.approx(-5e-5, rel=0.1)  # in the model too, on average of its weights
    assert ends[torch.bfloat16] == pytest.approx(ends[torch.float32], rel=0.01)
    assert ends[torch.bfloat16] == pytest.approx([-5e-5] * len(ends[torch.bfloat16]), rel=0.01)


# -- AdaLoRA -----------------------------------------------------------------------------------------------------------


def adalora_run(model: TokenModel, steps: range, optimizer: MasterOptimizer) -> None:
    """What the step loop does for an adapter with a rank schedule."""
    for step in steps:
        optimizer.accumulating = True
        (-model(ROW)[0].mean()).backward()
        penalty = adapters.orthogonality(model.module)
        assert penalty is not None
        penalty.backward()
        gradients = optimizer.gradient_copies()
        optimizer.step()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        adapters.spread_rank(model.module, step)
        optimizer.drop_gradients()
        optimizer.adopt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adalora_ends_with_its_budget(dtype: torch.dtype, configure, folder: Path, tmp_path: Path):
    from peft import PeftModel

    model = adapted(configure("peft=adalora", "peft.r=6"), folder, dtype)
    layers = [part for part in model.module.modules() if hasattr(part, "lora_E")]
    optimizer = MasterOptimizer(decay_groups(model.trainable(), 0.02, 0.0), ADAMW)
    adalora_run(model, range(1, 21), optimizer)
    kept = sum(int((layer.lora_E["default"] != 0).sum()) for layer in layers)
    assert kept == 4 * len(layers)
    assert len({int((layer.lora_E["default"] != 0).sum()) for layer in layers}) > 1
    for name, parameter, master in zip(optimizer.names, optimizer.params, optimizer.masters, strict=True):
        copy = torch.empty_like(parameter)
        round_into(copy, master, name)
        assert torch.equal(parameter, copy)
    adapters.settle(model.module)
    after = logits(model.module)
    model.module.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(load(folder, dtype), tmp_path, autocast_adapter_dtype=False).eval()
    assert gap(logits(reloaded), after) <= (1e-5 if dtype is torch.float32 else 0.1)
    assert gap(logits(plain_from(folder, dict(merged_weights(model.module)), dtype)), after) <= (
        1e-5 if dtype is torch.float32 else 0.2
    )


def test_adalora_state_makes_a_resumed_run_the_same(configure, folder: Path):
    cfg = configure("peft=adalora", "peft.r=6")

    def fresh() -> tuple[TokenModel, MasterOptimizer]:
        model = adapted(cfg, folder)
        return model, MasterOptimizer(decay_groups(model.trainable(), 0.02, 0.0), ADAMW)

    whole, optimizer = fresh()
    adalora_run(whole, range(1, 13), optimizer)
    first, optimizer = fresh()
    adalora_run(first, range(1, 7), optimizer)
    state = {name: tensor.clone() for name, tensor in adapters.adapter_state(first.module).items()}
    moments = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    second, optimizer = fresh()
    optimizer.load_state_tensors(moments)
    adapters.load_adapter_state(second.module, state)
    adalora_run(second, range(7, 13), optimizer)
    assert not changed(tensors(whole.module), tensors(second.module))
    assert adapters.adapter_state(adapted(configure("peft=lora"), folder).module) == {}


def test_orthogonality_is_the_papers():
    """(1/n) sum ||P^T P - I|| over the factors, times the coefficient; zero for orthonormal ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    module = add_adapter(LlamaForCausalLM(config), PeftConfig(method="adalora", r=3), "CAUSAL_LM")
    with torch.no_grad():
        for name, factor in module.named_parameters():
            if "lora_A" in name:
                factor.copy_(torch.eye(*factor.shape))
            elif "lora_B" in name:
                factor.copy_(2 * torch.eye(*factor.shape))
    # B^T B - I = 3 I of rank 3, for half of the factors; coefficient 0.5.
    assert adapters.orthogonality(module).item() == pytest.approx(0.5 * 0.5 * 3 * 3**0.5)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_reference_by_adapter_off_is_no_second_copy(configure, folder: Path):
    policy = adapted(configure("peft=lora"), folder)
    models = Models(None, policy=policy, reference_is_adapter_off=True)
    plain = load(folder)
    base = sum(parameter.numel() for parameter in plain.parameters())
    own = sum(parameter.numel() for _, parameter in policy.trainable())
    held = {id(parameter): parameter.numel() for model in models.by_role().values() for parameter in model.parameters()}
    assert sum(held.values()) == base + own and own < base / 2
    train(policy)
    reference = models.reference_logprobs(ROW)
    assert torch.equal(reference, TokenModel(plain)(ROW)[0]) and not reference.requires_grad
    assert gap(reference, policy(ROW)[0]) > 1e-3


def test_prompt_methods_score_nothing(folder: Path):
    with pytest.raises(ModelError, match="prompt method"):
        ScoreModel(add_adapter(load(folder), PeftConfig(method="prompt_tuning"), "CAUSAL_LM"))


def test_every_prompt_method_is_unmergeable():
    assert set(UNMERGEABLE) >= PROMPT_LEARNING


def test_findings_of_proven_methods_are_readable(configure):
    cfg = configure("peft=pissa")
    spec = type(
        "Spec", (),
        {"rollouts": False, "samples": False, "builds": False, "makes": "policy", "roles": ("policy", "reference")},
    )()  # fmt: skip
    [finding] = check_combinations(cfg, spec)
    assert finding.level == "warning" and "second copy" in finding.message


def test_the_documentation_lists_every_method():
    text = (Path(__file__).resolve().parents[2] / "docs" / "peft.md").read_text(encoding="utf-8")
    for method in PROVEN - {"none"}:
        merges, nf4, int8 = method not in UNMERGEABLE, method in QUANTISED["nf4"], method in QUANTISED["int8"]
        row = " | ".join("yes" if flag else "no" for flag in (merges, nf4, int8))
        assert f"| `{method}` | {row} |" in text
    for method, reason in FAILING.items():
        assert f"| `{method}` | {reason} |" in text
