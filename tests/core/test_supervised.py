"""The weighted loss against plain loops with labels; noise and smoothing against their formulas."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from core.errors import ModelError
from core.models.logprobs import linear_logprobs, logits_logprobs
from core.models.packed import PromptGroup, pack
from core.models.roles import Models, TokenModel
from core.tokens.examples import Demonstration
from plugins.sft.stage import neftune_noise, weighted_nll, weighted_rows

VOCABULARY, WIDTH = 61, 32


@pytest.fixture(scope="module")
def plain() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def examples() -> list[Demonstration]:
    source = random.Random(1)
    rows = []
    for length in (9, 14, 5, 20, 7, 11, 6, 16):
        weights = [0.0, *(source.choice([0.0, 0.0, 1.0, 0.5, 2.0]) for _ in range(length - 2)), 1.0]
        rows.append(Demonstration([source.randrange(VOCABULARY) for _ in range(length)], weights))
    return rows


def padded_loss(module: LlamaForCausalLM, rows: list[Demonstration], total: float, left: bool, smoothing: float):
    """The plain loop: a padded rectangle, labels shifted by one, one weight a token."""
    longest = max(len(row.ids) for row in rows)
    ids, mask, weights = torch.zeros(3, len(rows), longest)
    for number, row in enumerate(rows):
        place = slice(longest - len(row.ids), longest) if left else slice(0, len(row.ids))
        ids[number, place] = torch.tensor(row.ids, dtype=torch.float)
        mask[number, place] = 1
        weights[number, place] = torch.tensor(row.weights)
    positions = (mask.cumsum(1) - 1).clamp_min(0).long()
    logits = module(input_ids=ids.long(), attention_mask=mask.long(), position_ids=positions).logits
    losses = F.cross_entropy(
        logits[:, :-1].reshape(-1, VOCABULARY), ids[:, 1:].long().flatten(), reduction="none", label_smoothing=smoothing
    )
    return (losses * weights[:, 1:].flatten()).sum() / total


def trajectory(module: LlamaForCausalLM, loss_of, steps: int = 3) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and gradients of a few plain SGD steps; `loss_of` gives the parts of a step's loss."""
    own = copy.deepcopy(module)
    parts_of = loss_of(own)
    losses, gradients = [], []
    for _ in range(steps):
        own.zero_grad()
        total = 0.0
        for part in parts_of():
            loss = part()
            loss.backward()
            total += loss.item()
        losses.append(total)
        gradients.append(torch.cat([p.grad.flatten() for p in own.parameters()]))
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.sub_(0.05 * parameter.grad)
    return losses, gradients


def packed_way(rows: list[Demonstration], limit: int, smoothing: float):
    def make(module: LlamaForCausalLM):
        models = Models(None, policy=TokenModel(module))
        made = weighted_rows(rows, limit)
        return lambda: [lambda row=row: weighted_nll(models, row, label_smoothing=smoothing) for row in made]

    return make


def padded_way(rows: list[Demonstration], size: int, left: bool, smoothing: float):
    total = sum(abs(weight) for row in rows for weight in row.weights)
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]

    def make(module: LlamaForCausalLM):
        return lambda: [lambda part=part: padded_loss(module, part, total, left, smoothing) for part in parts]

    return make


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_trajectory_whatever_the_batching(plain, examples, smoothing):
    losses, gradients = trajectory(plain, padded_way(examples, len(examples), False, smoothing))
    assert losses[0] - losses[-1] > 1e-3
    ways = {
        "padded left": padded_way(examples, len(examples), True, smoothing),
        "2 padded at a time": padded_way(examples, 2, False, smoothing),
        "1 at a time": padded_way(examples, 1, True, smoothing),
        "one packed row": packed_way(examples, 1000, smoothing),
        "packed rows of 25 tokens": packed_way(examples, 25, smoothing),
        "one example a packed row": packed_way(examples, 1, smoothing),
    }
    for name, way in ways.items():
        other, others = trajectory(plain, way)
        assert other == pytest.approx(losses, abs=1e-6, rel=1e-6), name
        for one, two in zip(gradients, others, strict=True):
            assert (one - two).abs().max() <= 5e-6 * max(1.0, one.abs().max().item()), name


def test_a_step_in_which_nothing_is_weighed_is_refused():
    with pytest.raises(ValueError, match="no token"):
        weighted_rows([Demonstration([1, 2], [0.0, 0.0])], 10)


# ---- label smoothing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_is_torchs_own(smoothing, monkeypatch):
    monkeypatch.setattr("core.models.logprobs.CHUNK", 4)
    torch.manual_seed(0)
    hidden = torch.randn(11, 8, requires_grad=True)
    weight = torch.randn(VOCABULARY, 8, requires_grad=True)
    targets, factor = torch.randint(VOCABULARY, (11,)), torch.rand(11)
    logits = hidden @ weight.T
    theirs = (factor * F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)).sum()
    wanted = torch.autograd.grad(theirs, (hidden, weight), retain_graph=True)
    for ours in (
        -(factor * linear_logprobs(hidden, weight, targets, smoothing=smoothing)[0]).sum(),
        -(factor * logits_logprobs(hidden @ weight.T, targets, smoothing=smoothing)[0]).sum(),
    ):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        for mine, other in zip(torch.autograd.grad(ours, (hidden, weight)), wanted, strict=True):
            assert torch.allclose(mine, other, atol=1e-6)


# ---- NEFTune -----------------------------------------------------------------------------------------------------


class Wide:
    """What neftune_noise asks of a model, with an embedding of a given width."""

    def __init__(self, width: int) -> None:
        self.device = torch.device("cpu")
        self.base = self
        self.embedding = torch.nn.Embedding(2, width)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding


@pytest.mark.parametrize(("length", "width", "bound"), [(128, 576, 0.0184142), (512, 4096, 0.0034527)])
def test_the_size_of_the_noise(length, width, bound):
    packed = pack([PromptGroup([1] * (length - 3), [[1, 1, 1]])])
    noise = neftune_noise(packed, Wide(width), 5.0)
    assert noise.shape == (length, width)
    assert noise.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert noise.abs().max().item() <= bound * (1 + 1e-4)
    assert noise.mean().abs() < bound / 20
    assert noise.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_the_noise_of_a_sequence_goes_by_its_own_length():
    packed = pack([PromptGroup([1] * 4, [[1] * 12]), PromptGroup([1] * 2, [[1] * 2]), PromptGroup([1], [[1], [1] * 8])])
    assert packed.sequence_lengths().tolist() == [16] * 16 + [4] * 4 + [9] + [2] + [9] * 8
    torch.manual_seed(0)
    noise = neftune_noise(packed, Wide(400), 5.0).abs().amax(dim=1)
    for length, rows in ((16, noise[:16]), (4, noise[16:20]), (2, noise[21:22])):
        assert (rows <= 5 / math.sqrt(length * 400)).all()
        assert rows.max() > 0.97 * 5 / math.sqrt(length * 400)


def test_noise_in_training_only_and_once(plain, examples):
    models = Models(None, policy=TokenModel(copy.deepcopy(plain)))
    (row,) = weighted_rows(examples[:3], 1000)
    quiet = weighted_nll(models, row)
    torch.manual_seed(3)
    noisy = weighted_nll(models, row, neftune_alpha=50.0)
    assert abs(noisy.item() - quiet.item()) > 1e-4
    assert torch.equal(weighted_nll(models, row), quiet)  # nothing stays behind
    torch.manual_seed(3)
    noise = neftune_noise(row.packed, models.policy, 50.0)
    # The plain loop: the same noise on the embeddings of one sequence at a time.
    embed, at, total = plain.get_input_embeddings(), 0, sum(sum(map(abs, e.weights)) for e in examples[:3])
    loss = 0.0
    for example in examples[:3]:
        own = noise[at : at + example.tokens]
        at += example.tokens
        logits = plain(inputs_embeds=(embed(torch.tensor(example.ids)) + own)[None]).logits[0, :-1]
        losses = F.cross_entropy(logits, torch.tensor(example.ids[1:]), reduction="none")
        loss += (losses * torch.tensor(example.weights[1:])).sum().item() / total
    assert noisy.item() == pytest.approx(loss, rel=1e-5)


def test_checkpointed_layers_see_the_same_noise(plain, examples):
    (row,) = weighted_rows(examples[:3], 1000)
    found = []
    for checkpointing in (False, True):
        own = copy.deepcopy(plain).train()
        models = Models(None, policy=TokenModel(own))
        if checkpointing:
            own.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(5)
        weighted_nll(models, row, neftune_alpha=20.0).backward()
        found.append(torch.cat([p.grad.flatten() for p in own.parameters()]))
    assert found[0].abs().max() > 1e-3
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_prompt_methods_train_the_kept_tokens_and_take_no_noise(plain, examples):
    from peft import PromptTuningConfig, get_peft_model

    torch.manual_seed(0)
    module = get_peft_model(
        copy.deepcopy(plain), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    models = Models(None, policy=TokenModel(module))
    (row,) = weighted_rows(examples[:3], 1000)
    total = sum(sum(map(abs, example.weights)) for example in examples[:3])
    loss = 0.0
    for example in examples[:3]:
        logits = module(input_ids=torch.tensor([example.ids])).logits[0, 3:][:-1]
        losses = F.cross_entropy(logits, torch.tensor(example.ids[1:]), reduction="none")
        loss += (losses * torch.tensor(example.weights[1:])).sum().item() / total
    assert weighted_nll(models, row).item() == pytest.approx(loss, rel=1e-5)
    with pytest.raises(ModelError, match="no embedding noise"):
        weighted_nll(models, row, neftune_alpha=5.0)
