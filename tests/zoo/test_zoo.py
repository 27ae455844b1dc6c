"""Every family's forward pass on the road that the judge finds for it, against plain transformers one by one."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from types import SimpleNamespace

import families
import pytest
import torch
from families import REFUSED, VARIANTS, VOCABULARY, Variant
from table import family_rows
from torch import Tensor
from torch.nn import functional as F

from core.errors import ModelError
from core.models.architecture import check_kind
from core.models.judge import judge
from core.models.packed import PromptGroup, pack
from core.models.pairs import pair_rows
from core.models.roles import Models, ScoreModel, TokenModel
from core.tokens.examples import Demonstration, Pair
from plugins.reward.stage import Reward
from plugins.rlhf.dpo import DpoConfig
from plugins.rlhf.dpo.stage import Dpo
from plugins.sft.stage import weighted_nll, weighted_rows

LONGEST = 64
"""model.max_length of these tests, beyond every small window of the zoo."""
CLOSE = 1e-5
"""Accepted difference in nats, in scores, and in gradients as a share of their tensor's largest."""

ROUNDING = {"qwen3_5_text": 1e-3, "qwen3_next": 1e-3}
"""The same for gradients of families that round more: weights moved by 1e-7 of themselves move these by 1e-3."""

HANDFUL = [
    "llama", "mistral", "gemma2", "gpt_oss", "mamba2", "qwen3_5_text", "bloom", "granite", "phimoe", "falcon alibi",
    "deepseek_v3", "gpt2",
]  # fmt: skip
"""One of each kind: plain, window, soft caps, sinks, state space, hybrid, alibi, scaled logits, a window that only the
mask tells, latent attention, learned positions."""

by_name = {variant.name: variant for variant in VARIANTS}


def _ids(source: random.Random, count: int) -> list[int]:
    return [source.randrange(4, VOCABULARY) for _ in range(count)]


def _batch() -> list[Pair]:
    """Pairs short and long, the last beyond every small window."""
    source = random.Random(0)
    return [
        Pair(_ids(source, prompt), _ids(source, chosen), _ids(source, rejected))
        for prompt, chosen, rejected in ((3, 2, 5), (1, 4, 1), (17, 9, 21))
    ]


def _texts(batch: list[Pair]) -> list[tuple[list[int], list[int]]]:
    """Prompts and completions, chosen and rejected in turn."""
    return [(pair.prompt, own) for pair in batch for own in (pair.chosen, pair.rejected)]


def _logprobs(plain: torch.nn.Module, prompt: list[int], own: list[int]) -> Tensor:
    """Of the completion's tokens, [n], from one forward pass of the plain model."""
    ids = torch.tensor([prompt + own])
    logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(own)[:, None])[:, 0]


def _scores(plain: torch.nn.Module, prompt: list[int], own: list[int]) -> Tensor:
    """At the completion's tokens, [n]."""
    ids = torch.tensor([prompt + own])
    hidden = plain.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    return plain.score(hidden.to(plain.dtype))[0, len(prompt) :, 0]


def _same_gradients(ours: torch.nn.Module, theirs: torch.nn.Module, close: float = CLOSE) -> None:
    theirs_by_name = dict(theirs.named_parameters())
    for name, mine in ours.named_parameters():
        other = theirs_by_name[name]
        if other.grad is None or not other.grad.any():
            assert mine.grad is None or mine.grad.abs().max() < CLOSE, name
            continue
        assert mine.grad is not None, name
        # A gradient that is nothing but rounding (a bias before a softmax) has no share to keep to.
        bound = close * max(1.0, other.grad.abs().max().item())
        assert (mine.grad - other.grad).abs().max().item() <= bound, name


def _again(variant: Variant, plain: torch.nn.Module) -> torch.nn.Module:
    """Another plain model in the same weights. Not a deep copy: some families keep the state of their last call."""
    other = variant.model()
    other.load_state_dict(plain.state_dict())
    other.set_attn_implementation(plain.config._attn_implementation)
    return other


def _pair(variant: Variant, scorer: bool = False) -> tuple[TokenModel | ScoreModel, torch.nn.Module]:
    """The product's model, judged, and the plain one in the same weights and the same attention."""
    plain = variant.model(scorer=scorer)
    model = (ScoreModel if scorer else TokenModel)(copy.deepcopy(plain)).eval()
    judge(model, LONGEST)
    if model.config._attn_implementation != plain.config._attn_implementation:
        plain.set_attn_implementation(model.config._attn_implementation)
    return model, plain


def check_values(variant: Variant) -> None:
    """Log-probabilities, scores and their gradients."""
    batch = _batch()
    for scorer in (False, True):
        model, plain = _pair(variant, scorer)
        packed = pack([PromptGroup(pair.prompt, [pair.chosen, pair.rejected]) for pair in batch])
        one = _scores if scorer else _logprobs
        expected = torch.cat([one(plain, *text) for text in _texts(batch)])
        ours = model(packed, packed.taken_M) if scorer else model(packed)[0]
        assert (ours - expected).abs().max().item() <= CLOSE * max(1.0, expected.abs().max().item())
        weight = torch.randn(len(ours), generator=torch.Generator().manual_seed(1)) / len(ours)
        (ours * weight).sum().backward()
        (expected * weight).sum().backward()
        _same_gradients(model.module, plain, ROUNDING.get(variant.family, CLOSE))


def check_steps(variant: Variant) -> None:
    """A supervised, a preference and a reward step: the weights after it are those of a plain loop."""
    batch = _batch()
    examples = [Demonstration.of(prompt, own) for prompt, own in _texts(batch)]
    tokens = sum(len(own) for _, own in _texts(batch))
    model, plain = _pair(variant)
    for row in weighted_rows(examples, 60):
        weighted_nll(Models(None, policy=model), row).backward()
    for text in _texts(batch):
        (-_logprobs(plain, *text).sum() / tokens).backward()
    assert _step_both(variant.family, model.module, plain) > 0

    start = _again(variant, plain)
    with torch.no_grad():
        for parameter in (*model.module.parameters(), *plain.parameters()):
            parameter.grad = None
            parameter.mul_(1.01)
    reference = TokenModel(_again(variant, start)).requires_grad_(False).eval()
    reference.follow(model)
    stage = Dpo(SimpleNamespace(cfg=SimpleNamespace(stage=DpoConfig(beta=0.3))))
    for row in pair_rows(batch, 60):
        stage.compute_loss(Models(None, policy=model, reference=reference), row).loss.backward()
    for pair in batch:
        gaps = []
        for own in (pair.chosen, pair.rejected):
            with torch.no_grad():
                before = _logprobs(start, pair.prompt, own).sum()
            gaps.append(_logprobs(plain, pair.prompt, own).sum() - before)
        (-F.logsigmoid(0.3 * (gaps[0] - gaps[1])) / len(batch)).backward()
    _step_both(variant.family, model.module, plain)

    scorer, plain = _pair(variant, scorer=True)
    stage = Reward(SimpleNamespace(cfg=SimpleNamespace(stage=SimpleNamespace(margin=False, centering=0.01))))
    for row in pair_rows(batch, 60):
        stage.compute_loss(Models(None, reward_model=scorer), row).loss.backward()
    for pair in batch:
        chosen, rejected = (_scores(plain, pair.prompt, own)[-1] for own in (pair.chosen, pair.rejected))
        loss = -F.logsigmoid(chosen - rejected) + 0.01 * (chosen + rejected) ** 2
        (loss / len(batch)).backward()
    _step_both(variant.family, scorer.module, plain)


def _step_both(family: str, ours: torch.nn.Module, theirs: torch.nn.Module) -> int:
    """One step of gradient descent on each side; the weights must agree. How many tensors had a gradient."""
    close = ROUNDING.get(family, 3 * CLOSE)
    _same_gradients(ours, theirs, close)
    count = 0
    for module in (ours, theirs):
        moved = [p for p in module.parameters() if p.grad is not None]
        torch.optim.SGD(moved, lr=0.1).step()
        count = len(moved)
    others = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter, others[name], rtol=1e-4, atol=close), name
    return count


@pytest.mark.parametrize("name", HANDFUL)
def test_a_handful_gives_the_plain_models_values(name):
    check_values(by_name[name])


@pytest.mark.slow
def test_a_handful_makes_the_plain_models_steps():
    for name in ("llama", "gpt_oss", "qwen3_5_text", "mistral"):
        check_steps(by_name[name])


def check_bf16(variant: Variant) -> None:
    """In bf16 values follow the plain model's in bf16, and there is a gradient."""
    batch = _batch()
    for scorer in (False, True):
        plain = variant.model(scorer=scorer).to(torch.bfloat16)
        model = (ScoreModel if scorer else TokenModel)(copy.deepcopy(plain)).eval()
        judge(model, LONGEST)
        plain.set_attn_implementation(model.config._attn_implementation)
        packed = pack([PromptGroup(pair.prompt, [pair.chosen, pair.rejected]) for pair in batch])
        one = _scores if scorer else _logprobs
        with torch.no_grad():
            expected = torch.cat([one(plain, *text).float() for text in _texts(batch)])
        ours = model(packed, packed.taken_M) if scorer else model(packed)[0]
        assert (ours - expected).abs().mean().item() < 0.1
        ours.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.module.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["mamba2", "deepseek_v3"])
def test_bf16_follows_the_plain_model(name):
    # A residual stream in fp32; values that are narrower than keys.
    check_bf16(by_name[name])


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_gives_the_plain_models_values(variant):
    check_values(variant)


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_makes_the_plain_models_steps(variant):
    check_steps(variant)


@pytest.mark.parametrize("variant", REFUSED, ids=lambda variant: variant.name)
def test_what_predicts_no_next_token_is_refused(variant):
    with pytest.raises(ModelError, match=r"is an encoder|no causal language model"):
        check_kind(variant.config(), Path("config.json"))
        judge(TokenModel(variant.model()).eval(), LONGEST)


def test_the_zoo_is_large_and_its_names_are_unique():
    assert len(VARIANTS) >= 90
    assert len({variant.family for variant in VARIANTS}) >= 60
    assert len(by_name) == len(VARIANTS)


def test_the_table_of_the_docs_holds_the_families_of_the_zoo():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert family_rows(page) == [variant.name for variant in VARIANTS]
    assert families.__doc__
