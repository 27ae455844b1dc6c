"""Packed rows against plain, padded forward passes: values, gradients, isolation; and what exactly is trained."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
)

import core.models.attention
import core.models.logprobs
import core.models.packed
from core.data.records import Message, Record
from core.errors import ModelError
from core.models.judge import judge
from core.models.logprobs import linear_logprobs, logits_logprobs, sum_by_completion
from core.models.packed import PromptGroup, pack, pack_texts
from core.models.road import Road
from core.models.roles import ScoreModel, TokenModel
from core.settings.schema import Rows
from core.testing.tiny import tiny_tokenizer
from core.tokens.codec import ChatCodec
from core.tokens.encoding import ExampleMaker
from plugins.sft.stage import weighted_rows

VOCABULARY = 61


def config(**changes) -> LlamaConfig:
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
        "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
    }  # fmt: skip
    return LlamaConfig(**{**settings, **changes})


@pytest.fixture
def plain() -> LlamaForCausalLM:
    """The model as transformers runs it."""
    torch.manual_seed(0)
    return LlamaForCausalLM(config()).eval()


@pytest.fixture
def model(plain: LlamaForCausalLM) -> TokenModel:
    """The same weights on packed rows."""
    return TokenModel(copy.deepcopy(plain)).eval()


def ids(source: random.Random, count: int) -> list[int]:
    return [source.randrange(2, VOCABULARY) for _ in range(count)]


def groups(shape: list[tuple[int, list[int]]], seed: int = 0) -> list[PromptGroup]:
    source = random.Random(seed)
    return [PromptGroup(ids(source, prompt), [ids(source, n) for n in own]) for prompt, own in shape]


SHAPES = {
    "one completion": [(5, [7])],
    "a pair": [(6, [4, 9])],
    "many completions of unlike lengths": [(9, [1, 2, 30, 3, 11])],
    "one-token prompt": [(1, [8]), (1, [3, 5])],
    "one-token completions": [(4, [1, 1]), (3, [1])],
    "unlike prompts": [(2, [3]), (40, [5]), (7, [12, 2]), (1, [25])],
    "singles and groups mixed": [(12, [6]), (12, [6, 6, 6]), (5, [20]), (20, [5, 1])],
}


def plain_logprobs(model: LlamaForCausalLM, prompt, completion, temperature: float = 1.0) -> torch.Tensor:
    """One sequence, one forward pass, no padding."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def all_plain(model: LlamaForCausalLM, sequences: list[PromptGroup], temperature: float = 1.0) -> torch.Tensor:
    return torch.cat([plain_logprobs(model, g.prompt, c, temperature) for g in sequences for c in g.completions])


def same(left: torch.Tensor, right: torch.Tensor, tolerance: float = 2e-5) -> None:
    assert left.shape == right.shape
    assert (left - right).abs().max().item() < tolerance


# ---- values and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_equals_one_by_one_in_value_and_gradient(plain, model, shape, temperature):
    sequences = groups(shape)
    packed = pack(sequences)
    ours, _ = model(packed, temperature)
    theirs = all_plain(plain, sequences, temperature)
    same(ours, theirs)
    weight = torch.randn(len(ours), generator=torch.Generator().manual_seed(1))
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for (name, p), q in zip(plain.named_parameters(), model.module.parameters(), strict=True):
        assert p.grad is not None, name
        assert (p.grad - q.grad).abs().max() <= 1e-5 * max(1.0, p.grad.abs().max().item()), name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_bf16_gradients_follow_fp32(plain, model, shape):
    low = model.to(torch.bfloat16)
    exact = copy.deepcopy(low.module).float()
    exact.set_attn_implementation("eager")
    sequences = groups(shape)
    ours, theirs = low(pack(sequences))[0], all_plain(exact, sequences)
    assert (ours - theirs).abs().max() < 0.3
    ours.sum().backward()
    theirs.sum().backward()
    for (name, p), q in zip(exact.named_parameters(), low.module.parameters(), strict=True):
        if p.grad.norm() > 1e-3:
            assert (q.grad.float() - p.grad).norm() < 0.08 * p.grad.norm(), name


def test_random_shapes(plain, model):
    source = random.Random(3)
    for seed in range(12):
        shape = [
            (source.randrange(1, 25), [source.randrange(1, 25) for _ in range(source.randrange(1, 5))])
            for _ in range(source.randrange(1, 6))
        ]
        sequences = groups(shape, seed)
        with torch.no_grad():
            same(model(pack(sequences))[0], all_plain(plain, sequences))


def test_whole_texts(plain, model):
    source = random.Random(0)
    texts = [ids(source, n) for n in (2, 9, 31)]
    packed = pack_texts(texts)
    assert packed.targets_M.tolist() == [token for text in texts for token in text[1:]]
    with torch.no_grad():
        expected = torch.cat([plain_logprobs(plain, text[:1], text[1:]) for text in texts])
        same(model(packed)[0], expected)


def test_the_prompt_stands_once_in_the_row():
    packed = pack(groups([(10, [3, 4, 5]), (6, [2])]))
    assert packed.tokens == 10 + 12 + 6 + 2
    assert packed.completions == 4
    assert packed.completion_M.tolist() == [0] * 3 + [1] * 4 + [2] * 5 + [3] * 2
    assert packed.position_ids_T[10:13].tolist() == [10, 11, 12]
    assert packed.position_ids_T[13:17].tolist() == [10, 11, 12, 13]
    assert torch.equal(packed.input_ids_T[packed.taken_M], packed.targets_M)
    assert packed.last_C.tolist() == [12, 16, 21, 29]
    assert packed.predict_M.tolist() == [9, 10, 11, 9, 13, 14, 15, 9, 17, 18, 19, 20, 27, 28]


@pytest.mark.parametrize("bad", [PromptGroup([], [[1]]), PromptGroup([1], [[]]), PromptGroup([1], [[2], []])])
def test_empty_parts_are_refused(bad):
    with pytest.raises(ValueError, match="prompt token and non-empty"):
        pack([bad])


# ---- nobody sees a neighbour -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_completion_depends_on_its_prompt_and_itself_alone(model, shape):
    packed = pack(groups(shape))
    seen: list[torch.Tensor] = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        seen.append(output)

    model.base.get_input_embeddings().register_forward_hook(keep)
    for index, (root, own) in enumerate(packed.leaves):
        seen.clear()
        logprob, _ = model(packed)
        logprob[packed.completion_M == index].sum().backward()
        reached = seen[0].grad[0].abs().sum(1) > 0
        # The last token of a completion predicts nothing; all before it, back to the prompt's first, count.
        expected = torch.zeros(packed.tokens, dtype=torch.bool)
        expected[root[0] : root[1]] = True
        expected[own[0] : own[1] - 1] = True
        assert torch.equal(reached, expected)


def test_no_token_sees_a_later_one(model):
    packed = pack(groups([(6, [8, 5])]))
    changed = copy.copy(packed)
    changed.input_ids_T = packed.input_ids_T.clone()
    changed.input_ids_T[6 + 4] = 3 + packed.input_ids_T[6 + 4] % 7
    with torch.no_grad():
        before, after = model(packed)[0], model(changed)[0]
    # Token 4 of the first completion: tokens 0-4 are predicted from what stands before it.
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:8], after[5:8])
    assert torch.equal(before[8:], after[8:])


def test_order_and_company_change_nothing(model):
    sequences = groups(SHAPES["singles and groups mixed"])

    def by_completion(order: list[int]) -> dict[tuple[int, int], torch.Tensor]:
        with torch.no_grad():
            packed = pack([sequences[i] for i in order])
            parts = model(packed)[0].split(torch.bincount(packed.completion_M).tolist())
        keys = [(i, c) for i in order for c in range(len(sequences[i].completions))]
        return dict(zip(keys, parts, strict=True))

    together = by_completion([0, 1, 2, 3])
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        for key, values in by_completion(order).items():
            same(values, together[key], 1e-5)
    for alone in range(4):
        for key, values in by_completion([alone]).items():
            same(values, together[key], 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("amount", [0, 1, 17])
def test_padding_amounts_change_nothing(plain, model, side, amount):
    group = groups([(6, [9])])[0]
    tokens, count = [*group.prompt, *group.completions[0]], len(group.completions[0])
    fill, ones = [0] * amount, [1] * len(tokens)
    left = side == "left"
    row, mask = (fill + tokens, fill + ones) if left else (tokens + fill, ones + fill)
    mask_BT = torch.tensor([mask])
    with torch.no_grad():
        logits = plain(
            input_ids=torch.tensor([row]), attention_mask=mask_BT, position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0)
        ).logits[0]
        end = len(row) if left else len(tokens)
        expected, _ = logits_logprobs(logits[end - count - 1 : end - 1], torch.tensor(group.completions[0]))
        same(model(pack([group]))[0], expected, 1e-5)


def test_bucket_padding_changes_nothing(model, monkeypatch):
    # With ratio 0 everything is padded into one attention call, with ratio 1 nearly nothing is.
    sequences = groups(SHAPES["many completions of unlike lengths"] + SHAPES["unlike prompts"])
    results = []
    for ratio in (0.0, 0.6, 1.0):
        monkeypatch.setattr(core.models.packed, "_BUCKET_RATIO", ratio)
        packed = pack(sequences)
        with torch.no_grad():
            results.append((len(packed.calls), model(packed)[0]))
    assert results[0][0] < results[1][0] < results[2][0]
    same(results[0][1], results[1][1], 1e-5)
    same(results[0][1], results[2][1], 1e-5)


def test_only_m_computes_a_part(plain, model):
    packed = pack(groups(SHAPES["a pair"]))
    only = torch.tensor([0, 3, 4, 11])
    whole, whole_entropy = model(packed, 0.8, want_entropy=True)
    part, entropy = model(packed, 0.8, want_entropy=True, only_M=only)
    assert torch.allclose(part, whole[only], atol=1e-6)
    assert torch.allclose(entropy, whole_entropy[only], atol=1e-6)
    model.plain_head = False
    same(model(packed, 0.8, only_M=only)[0], whole[only], 1e-5)


def test_a_head_that_is_more_than_a_matrix_takes_the_plain_road(plain, model):
    packed = pack(groups(SHAPES["a pair"]))
    fast, fast_entropy = model(packed, 0.8, want_entropy=True)
    model.plain_head = False
    slow, slow_entropy = model(packed, 0.8, want_entropy=True)
    same(fast, slow, 1e-5)
    same(fast_entropy, slow_entropy, 1e-5)
    biased = copy.deepcopy(plain)
    biased.lm_head = torch.nn.Linear(32, VOCABULARY, bias=True)
    wrapped = TokenModel(copy.deepcopy(biased))
    assert not wrapped.plain_head
    sequences = groups(SHAPES["a pair"])
    with torch.no_grad():
        same(wrapped(packed)[0], all_plain(biased, sequences))


# ---- the logits that never stand whole ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
def test_linear_logprobs_is_log_softmax(monkeypatch, count, temperature):
    monkeypatch.setattr(core.models.logprobs, "CHUNK", 2)
    monkeypatch.setattr(core.models.logprobs, "GRADIENT_CHUNK", 3)
    source = torch.Generator().manual_seed(count)
    hidden, weight = torch.randn(count, 8, generator=source), torch.randn(20, 8, generator=source)
    targets = torch.randint(0, 20, (count,), generator=source)
    scale = torch.randn(count, generator=source)
    results = []
    for way in ("chunked", "whole"):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if way == "chunked":
            logprob, entropy = linear_logprobs(h, w, targets, temperature, want_entropy=True)
        else:
            logprob, entropy = logits_logprobs(h @ w.T, targets, temperature, want_entropy=True)
        (logprob * scale).sum().backward()
        results.append((logprob.detach(), entropy, h.grad, w.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_linear_logprobs_passes_torchs_own_gradient_check(monkeypatch):
    # In float32, as the function computes; hence the wide step and tolerance.
    monkeypatch.setattr(core.models.logprobs, "CHUNK", 2)
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 4, generator=source, requires_grad=True)
    weight = torch.randn(5, 4, generator=source, requires_grad=True)
    targets = torch.tensor([0, 4, 2])

    def function(h, w):
        return linear_logprobs(h, w, targets, 0.8)[0]

    assert torch.autograd.gradcheck(
        function, (hidden, weight), eps=1e-2, atol=5e-3, rtol=5e-3, check_undefined_grad=False
    )


def test_entropy_of_a_uniform_and_of_a_sharp_distribution():
    hidden, weight = torch.ones(1, 1), torch.zeros(16, 1)
    logprob, entropy = linear_logprobs(hidden, weight, torch.tensor([3]), want_entropy=True)
    assert entropy.item() == pytest.approx(2.7725887, abs=1e-6)
    assert logprob.item() == pytest.approx(-2.7725887, abs=1e-6)
    weight[3] = 100.0
    logprob, entropy = linear_logprobs(hidden, weight, torch.tensor([3]), want_entropy=True)
    assert entropy.item() == pytest.approx(0.0, abs=1e-6)
    assert logprob.item() == pytest.approx(0.0, abs=1e-6)
    assert linear_logprobs(hidden, weight, torch.tensor([3]))[1].item() == 0.0


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(20, 8)
    linear_logprobs(hidden, weight, torch.tensor([1, 2, 3, 4]))[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert linear_logprobs(hidden[:0], weight, torch.tensor([], dtype=torch.long))[0].shape == (0,)


def test_the_weight_gradient_is_summed_in_fp32(monkeypatch):
    # 1024 contributions of 0.5: a bf16 sum would stop growing at 128.
    monkeypatch.setattr(core.models.logprobs, "CHUNK", 1)
    monkeypatch.setattr(core.models.logprobs, "GRADIENT_CHUNK", 1)
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_logprobs(hidden, weight, torch.zeros(1024, dtype=torch.long))[0].sum().backward()
    assert weight.grad[:, 0].tolist() == [512.0, -512.0]


def test_sum_by_completion():
    sums = sum_by_completion(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 2, 2]), 4)
    assert sums.tolist() == [3.0, 0.0, 12.0, 0.0]


# ---- scores ------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_transformers():
    torch.manual_seed(1)
    theirs = LlamaForSequenceClassification(config(num_labels=1)).eval()
    ours = ScoreModel(copy.deepcopy(theirs)).eval()
    sequences = groups(SHAPES["singles and groups mixed"])
    texts = [[*g.prompt, *c] for g in sequences for c in g.completions]
    longest = max(map(len, texts))
    rows = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    packed = pack(sequences)
    with torch.no_grad():
        expected = theirs(input_ids=rows, attention_mask=(rows > 0).long()).logits[:, 0]
        same(ours(packed), expected, 1e-5)
        ours.offset = 0.75
        same(ours(packed), expected - 0.75, 1e-5)


def test_values_stand_before_each_token():
    torch.manual_seed(1)
    theirs = LlamaForSequenceClassification(config(num_labels=1)).eval()
    ours = ScoreModel(copy.deepcopy(theirs)).eval()
    sequences = groups(SHAPES["a pair"])
    packed = pack(sequences)
    expected = []
    with torch.no_grad():
        for group in sequences:
            for own in group.completions:
                hidden = theirs.model(input_ids=torch.tensor([[*group.prompt, *own]])).last_hidden_state[0]
                expected.append(theirs.score(hidden)[len(group.prompt) - 1 : -1, 0])
        same(ours(packed, packed.predict_M), torch.cat(expected), 1e-5)


def test_a_saved_offset_is_read():
    changed = config(num_labels=1)
    changed.preftune_reward_offset = -0.5
    torch.manual_seed(0)
    assert ScoreModel(LlamaForSequenceClassification(changed)).offset == -0.5


# ---- the check before training -----------------------------------------------------------------------------------


@pytest.fixture
def attention() -> Iterator[None]:
    """The registered attention is put back afterwards."""
    yield
    core.models.attention.register_attention()


PAIR = groups(SHAPES["a pair"])


def test_a_whole_model_is_packed(model):
    model.train()
    judge(model, 64)
    assert model.training
    assert model.road == Road()
    assert model.road.title == "packed rows"


def test_attention_that_sees_neighbours_is_not_taken(attention, monkeypatch, plain):
    def leaking(module, query, key, value, attention_mask, packed=None, **more):
        groups_ = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups_, dim=1) for x in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.transpose(1, 2), None

    monkeypatch.setattr(core.models.attention, "packed_attention", leaking)
    model = TokenModel(copy.deepcopy(plain))
    assert (model(pack(PAIR))[0] - all_plain(plain, PAIR)).abs().max() > 0.01
    judge(model, 64)
    assert model.road.rows is Rows.padded
    assert "packed rows differ from the plain model by" in model.road.why
    with torch.no_grad():
        same(model(pack(PAIR))[0], all_plain(plain, PAIR), 1e-5)
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_rounding_of_thirty_layers_is_no_fault(real_model, dtype):
    """Of real weights, with logits near 20, packed rows and plain ones are 3e-5 nats apart in fp32."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    policy = TokenModel(AutoModelForCausalLM.from_pretrained(real_model, dtype=dtype)).eval()
    judge(policy, 512)
    module = AutoModelForSequenceClassification.from_pretrained(real_model, dtype=dtype, num_labels=1)
    scorer = ScoreModel(module).eval()
    judge(scorer, 512)
    assert policy.road.rows is scorer.road.rows is Rows.packed


def test_a_body_that_ignores_positions_takes_padded_rows(plain, model):
    forward = model.base.model.forward

    def ignoring(*args, **more):
        more.pop("position_ids", None)
        return forward(*args, **more)

    model.base.model.forward = ignoring
    judge(model, 64)
    assert model.road.rows is Rows.padded
    with torch.no_grad():
        same(model(pack(PAIR))[0], all_plain(plain, PAIR), 1e-5)
    with pytest.raises(ModelError, match="packed rows give what the plain model gives: packed rows differ"):
        judge(model, 64, Rows.packed)


def test_a_head_that_does_more_unseen_is_run_as_it_is(plain, model):
    for each in (plain, model.base):
        head = each.lm_head
        head.forward = lambda hidden, forward=head.forward: 1.2 * forward(hidden)
    judge(model, 64)
    assert (model.road.rows, model.plain_head) == (Rows.packed, False)
    with torch.no_grad():
        same(model(pack(PAIR))[0], all_plain(plain, PAIR), 1e-5)


def test_not_a_number_is_refused(model):
    with torch.no_grad():
        model.base.lm_head.weight[5] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        judge(model, 64)


def test_an_encoder_is_refused_however_small_its_weights():
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.002,
    )  # fmt: skip
    torch.manual_seed(0)
    model = TokenModel(BertLMHeadModel(config))
    with pytest.raises(ModelError, match="no causal language model, but sees the whole text as an encoder does"):
        judge(model, 32)


def test_a_low_precision_model_is_judged_in_fp32_and_keeps_its_bits(plain):
    model = TokenModel(copy.deepcopy(plain).to(torch.bfloat16))
    before = copy.deepcopy(model.module.state_dict())
    seen = []
    model.base.model.layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    judge(model, 64)
    assert seen[0] == torch.float32 and seen[-1] == torch.bfloat16
    for name, tensor in model.module.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name]), name


def test_more_tokens_than_positions_are_refused():
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=24)
    model = TokenModel(GPT2LMHeadModel(config))
    judge(model, 24)
    with pytest.raises(ModelError, match=r"has 24 positions, fewer than model\.max_length=25"):
        judge(model, 25)


def test_packed_attention_refuses_what_it_does_not_do():
    packed = pack(groups([(6, [6])]))
    query = torch.randn(1, 2, 12, 4)

    def attend(**more):
        core.models.attention.packed_attention(torch.nn.Module(), query, query, query, None, packed=packed, **more)

    attend(sliding_window=12, softcap=None, position_ids=torch.zeros(1, 12, dtype=torch.long))
    for more, said in (
        ({"sliding_window": 11}, "sliding window of 11"),
        ({"softcap": 30.0}, "soft-capping"),
        ({"s_aux": torch.zeros(2)}, "attention with s_aux"),
        ({"position_bias": torch.zeros(1, 2, 12, 12)}, "attention with position_bias"),
    ):
        with pytest.raises(core.models.attention.NotPackable, match=said):
            attend(**more)


# ---- padded rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [Rows.padded, Rows.single])
@pytest.mark.parametrize("plain_head", [True, False])
def test_every_road_gives_the_same_values_and_gradients(plain, model, rows, plain_head):
    sequences = groups(SHAPES["singles and groups mixed"] + SHAPES["unlike prompts"])
    other = TokenModel(copy.deepcopy(plain)).eval()
    other.road, other.plain_head = Road(rows, "asked for"), plain_head
    packed = pack(sequences)
    source = torch.Generator().manual_seed(2)
    keep = torch.rand(len(packed.targets_M), generator=source) < 0.6
    noise = 0.1 * torch.randn(packed.tokens, 32, generator=source)
    results = []
    for each in (model, other):
        logprob, entropy = each(packed.keep(keep), 0.8, want_entropy=True, noise_Td=noise)
        (logprob * torch.linspace(-1, 2, len(logprob))).sum().backward()
        results.append((logprob.detach(), entropy, {name: p.grad for name, p in each.module.named_parameters()}))
    same(results[0][0], results[1][0], 1e-5)
    same(results[0][1], results[1][1], 1e-5)
    for name, gradient in results[0][2].items():
        assert (gradient - results[1][2][name]).abs().max() <= 1e-5 * max(1.0, gradient.abs().max().item()), name
    same(model.logprobs_and_states(packed)[1], other.logprobs_and_states(packed)[1], 1e-5)


def test_rows_beyond_the_window_are_padded_and_others_packed():
    torch.manual_seed(0)
    windowed = MistralForCausalLM(
        MistralConfig(**{**config().to_dict(), "sliding_window": 12, "head_dim": 8, "model_type": "mistral"})
    ).eval()
    model = TokenModel(copy.deepcopy(windowed)).eval()
    judge(model, 64)
    assert (model.road.rows, model.road.limit) == (Rows.packed, 12)
    assert model.road.title.startswith("packed rows; sequences of more than 12 tokens in padded rows: they are longer")
    ran: list[bool] = []
    model.body.register_forward_hook(lambda *args: ran.append("packed" in args[2]), with_kwargs=True)
    for shape, packed in (([(5, [7, 3])], True), ([(5, [8, 3])], False), ([(30, [9])], False)):
        sequences = groups(shape)
        with torch.no_grad():
            same(model(pack(sequences))[0], all_plain(windowed, sequences), 1e-5)
        assert ran.pop() is packed
    judge(model, 12)
    assert model.road == Road()


# ---- what is trained, decoded ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec() -> ChatCodec:
    return ChatCodec(tiny_tokenizer(), 512)


@dataclass
class Maker:
    """An ExampleMaker, and what it dropped."""

    codec: ChatCodec
    limit: int = 512
    dropped: list = field(default_factory=list)

    @property
    def make(self) -> ExampleMaker:
        return ExampleMaker(self.codec, self.limit, lambda record, reason: self.dropped.append((record, reason)))


QUESTIONS = ["Name the number after one", "two", " spaces kept ", "naïve ☕ <|im_start|> text\n\nover lines"]
ANSWERS = ["two", "three\nand four", " a leading blank", "☕ red, blue."]


def records(**fields) -> list[Record]:
    return [
        Record(
            prompt=(Message("system", "Be short."), Message("user", question)), **{k: v[i] for k, v in fields.items()}
        )
        for i, question in enumerate(QUESTIONS)
    ]


def test_targets_decode_to_the_completion_and_its_end(codec):
    examples = Maker(codec).make.demonstrations(records(completion=ANSWERS))
    (row,) = weighted_rows(examples, 10_000)
    packed = row.packed
    for index, answer in enumerate(ANSWERS):
        trained = packed.targets_M[packed.completion_M == index].tolist()
        assert codec.tokenizer.decode(trained) == answer + "<|im_end|>"
        assert trained[-1] == codec.eos
        assert trained.count(codec.eos) == 1
        example = examples[index]
        prompt = codec.tokenizer.decode(example.ids[: example.tokens - example.trained])
        assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert QUESTIONS[index] in prompt
    prompts = torch.ones(packed.tokens, dtype=torch.bool)
    prompts[packed.taken_M] = False
    assert int(prompts.sum()) == sum(example.tokens - example.trained for example in examples)
    for (start, end), _ in packed.leaves:
        assert prompts[start:end].all()


def test_both_sides_of_a_pair_share_prompt_and_end(codec):
    rejected = list(reversed(ANSWERS))
    examples = Maker(codec).make.pairs(records(chosen=ANSWERS, rejected=rejected))
    packed = pack([PromptGroup(pair.prompt, [pair.chosen, pair.rejected]) for pair in examples])
    for index, (better, worse) in enumerate(zip(ANSWERS, rejected, strict=True)):
        for offset, answer in ((0, better), (1, worse)):
            trained = packed.targets_M[packed.completion_M == 2 * index + offset].tolist()
            assert codec.tokenizer.decode(trained) == answer + "<|im_end|>"
    assert (packed.input_ids_T[packed.last_C] == codec.eos).all()


def test_nothing_is_cut_off_what_is_too_long_is_dropped(codec):
    whole = Maker(codec).make.demonstrations(records(completion=ANSWERS))
    limit = sorted(example.tokens for example in whole)[1]
    run = Maker(codec, limit)
    kept = run.make.demonstrations(records(completion=ANSWERS))
    assert kept == [example for example in whole if example.tokens <= limit]
    assert len(run.dropped) == 2
    assert all(f"model.max_length={limit}" in reason for _, reason in run.dropped)


def test_changing_a_prompt_token_changes_the_loss_but_not_the_targets(plain, model):
    group = groups([(6, [5])])[0]
    other = PromptGroup([*group.prompt[:2], 2 + group.prompt[2] % 50, *group.prompt[3:]], group.completions)
    one, two = pack([group]), pack([other])
    assert torch.equal(one.targets_M, two.targets_M)
    with torch.no_grad():
        assert not torch.allclose(model(one)[0], model(two)[0])
