"""NLFT: published numbers, alignment of the conditions, signs of gradients, where answers and judgements come from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.records import Message, Record, Span
from core.errors import PreftuneError
from core.results import StageResult
from core.testing.tiny import tiny_tokenizer
from core.types import Score
from plugins.nlft import ClusterMeasure, NegativeNll, NlftConfig
from plugins.nlft.build import RULE
from plugins.nlft.items import conditioned, final_answer, item_of, tokens_of_spans
from plugins.nlft.rows import Example, NlftRow, annotation_of, lay_out, signed_loss, token_weights, training_rows
from plugins.nlft.saliency import (
    Annotation,
    annotate_right,
    annotate_spans,
    annotate_wrong,
    clusters,
    negative_tokens,
    positive_weights,
    push_weights,
    unlikelihood,
)

CFG = NlftConfig(cluster=False)


@pytest.fixture
def make_stage(make_stage):
    """The stage with its answers made and weighed."""

    def make(*words: str) -> Any:
        stage = make_stage(*words)
        stage.make_data()
        return stage

    return make


def probs(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values).log()


# ---- published numbers -------------------------------------------------------------------------------------------


def test_weights_of_right_answers():
    none, both = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    correct = probs(0.96, 0.98, 0.99, 1.0, 0.6, 0.3)
    apart = positive_weights(correct, none, CFG)
    assert apart.tolist() == pytest.approx([1.00032, 1.07776, 1.32768, 2.0, 0.75903, 0.50077], abs=1e-5)
    joined = positive_weights(correct, both, CFG)
    assert joined.tolist() == pytest.approx([1.00032, 1.07776, 1.32768, 2.0, 0.87122, 0.70765], abs=1e-5)


def test_weights_of_negative_tokens():
    weights = push_weights(probs(0.2, 0.3, 0.5), probs(0.1, 0.1, 0.1), CFG)
    assert weights.tolist() == pytest.approx([1.24492, 1.63515, 1.94138], abs=1e-5)


def loss_of(annotation: Annotation, base: torch.Tensor) -> float:
    return signed_loss(base, annotation.pull_T, annotation.push_T).item() / len(base)


def test_the_worked_negative_row():
    judge, base, correct = logs(0.5, 0.9, 0.2, 0.3), logs(0.2, 0.85, 0.1, 0.3), logs(0.2, 0.9, 0.25, 0.4)
    annotation = annotate_wrong(judge, base, correct, None, CFG)
    assert annotation.seed_T.tolist() == [True, False, False, False]
    assert annotation.pull_T.tolist() == [0, 0, 0, 0]  # 25 % of the tokens are negative
    assert loss_of(annotation, base) == pytest.approx(0.0815655, abs=1e-6)
    # Without the rule about the share the others are pulled by sqrt(p(correct)).
    more = annotate_wrong(judge, base, correct, None, NlftConfig(max_negative_share=1.0))
    assert more.pull_T.tolist() == pytest.approx([0, math.sqrt(0.9), 0.5, math.sqrt(0.4)], abs=1e-6)


def test_the_worked_positive_row():
    base = logs(0.8, 0.5, 0.9)
    annotation = annotate_right(logs(0.99, 0.6, 0.95), None, CFG)
    assert loss_of(annotation, base) == pytest.approx(0.3092468, abs=1e-6)


def test_a_token_is_negative_by_all_three_tests():
    judge, base, correct = probs(0.4, 0.4, 0.4, 0.009), probs(0.1, 0.3, 0.1, 0.001), probs(0.1, 0.1, 0.3, 0.001)
    assert negative_tokens(judge, base, correct, CFG).tolist() == [True, False, False, False]


# ---- clustering --------------------------------------------------------------------------------------------------


def test_clusters_grow_from_the_seed_while_the_measure_holds():
    states = torch.tensor([[0.0, 1.0], [1.0, 0.2], [1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [1.0, 0.0]])
    seeds = torch.tensor([False, False, True, False, False, False])
    assert clusters(states, seeds, NlftConfig()).tolist() == [False, True, False, True, False, False]
    released = clusters(states, seeds, NlftConfig(cluster_measure=ClusterMeasure.distance))
    assert released.tolist() == [False] * 6  # its direct neighbours are alike, so the walk ends at once
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert clusters(apart, torch.tensor([True, False]), CFG).tolist() == [False, False]


def test_the_released_measure_joins_unlike_neighbours():
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    seeds = torch.tensor([True, False])
    cfg = NlftConfig(cluster_measure=ClusterMeasure.distance)
    assert clusters(apart, seeds, cfg).tolist() == [False, True]


def test_neighbours_of_negative_tokens_do_not_count():
    states = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
    cfg = NlftConfig(max_negative_share=1.0)
    annotation = annotate_wrong(logs(0.5, 0.5, 0.5), logs(0.1, 0.5, 0.5), logs(0.1, 0.64, 0.64), states, cfg)
    assert annotation.joined_T.tolist() == [False, True, False]
    assert annotation.pull_T.tolist() == pytest.approx([0, 0, 0.8])


# ---- the loss ----------------------------------------------------------------------------------------------------


@given(st.floats(min_value=-30, max_value=-1e-3))
@settings(deadline=None)
def test_unlikelihood_is_the_logarithm_of_one_minus_p(logprob):
    wanted = -math.log1p(-math.exp(logprob))
    assert unlikelihood(torch.tensor(logprob)).item() == pytest.approx(wanted, rel=2e-3, abs=1e-6)


def test_unlikelihood_of_a_certain_token_is_finite_and_still_pushes():
    logprob = torch.tensor([0.0, -1e-9, -1e-4, -1.0, -50.0, -math.inf], requires_grad=True)
    loss = unlikelihood(logprob)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and (loss >= 0).all() and loss.max() < 14
    gradient = logprob.grad
    assert gradient is not None and torch.isfinite(gradient).all()
    assert (gradient[:5] > 0).all() and gradient.max() <= 1.1e6


@given(st.lists(st.tuples(*[st.floats(0.001, 0.999)] * 3), min_size=1, max_size=12), st.booleans())
@settings(deadline=None)
def test_weights_are_finite_without_gradient_and_never_pull_and_push(rows, right):
    judge, base, correct = (torch.tensor(column).log().requires_grad_() for column in zip(*rows, strict=True))
    one = annotate_right(correct, None, CFG) if right else annotate_wrong(judge, base, correct, None, CFG)
    for weights in (one.pull_T, one.push_T):
        assert not weights.requires_grad and torch.isfinite(weights).all()
        assert (weights >= 0).all() and (weights <= 2).all()
    assert not ((one.pull_T > 0) & (one.push_T > 0)).any()


# ---- rows --------------------------------------------------------------------------------------------------------

IDS = st.lists(st.integers(3, 300), min_size=1, max_size=7)


@st.composite
def examples(draw) -> list[Example]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        right = draw(st.booleans())
        names = ["base", "correct"] if right else ["base", "judge", "correct"]
        found.append(Example({name: draw(IDS) for name in names}, draw(IDS), right))
    return found


@given(examples())
@settings(deadline=None)
def test_every_condition_holds_the_same_answer(made):
    layout = lay_out(made, [list(example.prompts) for example in made])
    packed = layout.packed
    for example, places in zip(made, layout.places, strict=True):
        for name, place in places.items():
            assert packed.targets_M[place].tolist() == example.answer
            assert packed.input_ids_T[packed.taken_M[place]].tolist() == example.answer
            seen = [*example.prompts[name], *example.answer][-len(example.answer) - 1 : -1]
            assert packed.input_ids_T[packed.predict_M[place]].tolist() == seen


@given(examples())
@settings(deadline=None)
def test_the_shifted_reading_is_the_judges_row_at_the_base_rows_places(made):
    layout = lay_out(made, [list(example.prompts) for example in made], shifted=True)
    packed = layout.packed
    for example, places in zip(made, layout.places, strict=True):
        assert ("shifted" in places) == (not example.right)
        if example.right:
            continue
        whole = [*example.prompts["judge"], *example.answer]
        begin = len(example.prompts["base"]) - 1
        wanted = whole[begin : begin + len(example.answer)]
        assert packed.input_ids_T[packed.predict_M[places["shifted"]]].tolist() == wanted
        assert packed.targets_M[places["shifted"]].tolist() == example.answer[: len(wanted)]


def wrong_example() -> Example:
    return Example({"base": [5, 6, 7], "judge": [5, 9, 9, 8, 7], "correct": [5, 6, 30, 31]}, [40, 41, 42, 43, 2], False)


def right_example() -> Example:
    return Example({"base": [11, 12], "correct": [11, 13, 14]}, [50, 51, 2], True)


def conditions_of(stage: Any, example: Example) -> dict[str, torch.Tensor]:
    layout = lay_out([example], [list(example.prompts)])
    with torch.no_grad():
        logprob_M = stage.models.policy(layout.packed)[0]
    return {name: logprob_M[place] for name, place in layout.places[0].items()}


def test_one_packed_pass_equals_the_plain_passes(make_stage):
    stage = make_stage("stage=nlft")
    batch = [right_example(), wrong_example()]
    layout = lay_out(batch, [list(example.prompts) for example in batch])
    with torch.no_grad():
        logprob_M, state_Md = stage.models.policy.logprobs_and_states(layout.packed)
        module = stage.models.policy.module
        for example, places in zip(batch, layout.places, strict=True):
            for name, place in places.items():
                ids = torch.tensor([[*example.prompts[name], *example.answer]])
                out = module(input_ids=ids, output_hidden_states=True)
                start = len(example.prompts[name])
                wanted = out.logits[0, start - 1 : -1].log_softmax(-1).gather(1, torch.tensor(example.answer)[:, None])
                assert torch.allclose(logprob_M[place], wanted[:, 0], atol=1e-5)
                assert torch.allclose(state_Md[place], out.hidden_states[-1][0, start:], atol=1e-4)


def test_another_judgement_moves_the_judges_row_alone(make_stage):
    stage = make_stage("stage=nlft")
    example = wrong_example()
    turned = Example({**example.prompts, "judge": example.prompts["judge"][::-1]}, example.answer, False)
    one, other = conditions_of(stage, example), conditions_of(stage, turned)
    assert torch.equal(one["base"], other["base"]) and torch.equal(one["correct"], other["correct"])
    assert (one["judge"] - other["judge"]).abs().max() > 1e-3


def step_on(stage: Any, example: Example, annotation: Annotation, cfg: NlftConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """p(base) of the answer's tokens before and after a small step down the loss's gradient."""
    (row,) = training_rows([example], [annotation], cfg)
    before = conditions_of(stage, example)["base"]
    stage.stage.cfg = cfg
    loss = stage.hook.compute_loss(run=stage.run, models=stage.models, micro_batch=row).loss
    loss.backward()
    with torch.no_grad():
        for _, parameter in stage.models.policy.trainable():
            if parameter.grad is not None:
                parameter.sub_(1e-2 * parameter.grad)
                parameter.grad = None
    return before, conditions_of(stage, example)["base"]


def marks(*places: int, count: int = 5) -> torch.Tensor:
    flags = torch.zeros(count, dtype=torch.bool)
    flags[list(places)] = True
    return flags


@pytest.mark.parametrize("place", range(5))
def test_negative_tokens_go_down(make_stage, place):
    cfg = NlftConfig(cluster=False, nll_weight=0.0)
    seed = marks(place)
    before, after = step_on(
        make_stage("stage=nlft"), wrong_example(), Annotation(torch.zeros(5), seed * 1.5, seed, marks()), cfg
    )
    assert after[place] < before[place]


def test_salient_tokens_go_up(make_stage):
    cfg = NlftConfig(cluster=False, nll_weight=0.0)
    seed = marks(1, count=3)
    before, after = step_on(
        make_stage("stage=nlft"), right_example(), Annotation(seed * 2.0, torch.zeros(3), seed, marks(count=3)), cfg
    )
    assert after[1] > before[1]


def test_the_plain_likelihood_of_a_wrong_answer_is_the_judges(make_stage):
    stage = make_stage("stage=nlft")
    example = wrong_example()
    nothing = Annotation(torch.zeros(5), torch.zeros(5), marks(), marks())
    known = conditions_of(stage, example)
    for kind, wanted in ((NegativeNll.judge, -known["judge"].mean().item()), (NegativeNll.none, 0.0)):
        cfg = NlftConfig(cluster=False, negative_nll=kind)
        (row,) = training_rows([example], [nothing], cfg)
        pull_M, push_M = token_weights(row, [nothing], cfg)
        logprob_M = stage.models.policy(row.layout.packed)[0]
        assert signed_loss(logprob_M, pull_M, push_M).item() == pytest.approx(wanted, abs=1e-6)
    cfg = NlftConfig(cluster=False, negative_nll=NegativeNll.misaligned)
    (row,) = training_rows([example], [nothing], cfg)
    ids = torch.tensor([[*example.prompts["judge"], *example.answer]])
    begin = len(example.prompts["base"]) - 1
    with torch.no_grad():
        logits = stage.models.policy.module(input_ids=ids).logits[0, begin : begin + 5].log_softmax(-1)
        wanted = -logits.gather(1, torch.tensor(example.answer)[:, None]).mean().item()
        loss = signed_loss(stage.models.policy(row.layout.packed)[0], *token_weights(row, [nothing], cfg))
    assert loss.item() == pytest.approx(wanted, abs=1e-5)


def test_right_answers_keep_their_weights_beside_wrong_ones_unless_asked_otherwise():
    both = [right_example(), wrong_example()]
    notes = [
        Annotation(torch.ones(3), torch.zeros(3), marks(count=3), marks(count=3)),
        Annotation(torch.zeros(5), torch.ones(5), marks(), marks()),
    ]
    for drop, wanted in ((False, 2.0), (True, 1.0)):
        cfg = NlftConfig(mixed_rows_drop_positive=drop)
        (row,) = training_rows(both, notes, cfg)
        pull_M, _ = token_weights(row, notes, cfg)
        assert pull_M[row.layout.places[0]["base"]].tolist() == pytest.approx([wanted / (3 * 2)] * 3)
        alone = NlftRow(lay_out(both[:1], [["base"]]), both[:1], notes[:1], 2)
        assert token_weights(alone, notes[:1], cfg)[0].tolist() == pytest.approx([2.0 / (3 * 2)] * 3)


# ---- whole steps -------------------------------------------------------------------------------------------------

QUICK = ("stage=nlft", "stage.lr=1e-3", "optimizer.eps=1e-3", "stage.batch_size=6", "stage.max_steps=3")


@pytest.mark.parametrize("annotation", ["frozen", "live"])
def test_micro_batches_change_nothing(make_stage, annotation):
    results: list[Any] = []
    limit = 100_000
    for _ in range(3):
        stage = make_stage(*QUICK, f"stage.annotation={annotation}", f"stage.micro_batch_tokens={limit}")
        batch = stage.collect()
        counts, limit = len(batch.updates[0]), batch.tokens // 2 if limit == 100_000 else 1
        results.append((counts, stage.fit(), stage.weights()))
    assert results[0][0] == 1 < results[1][0] < results[2][0] == 6
    for _, rows, weights in results[1:]:
        for ours, whole in zip(rows, results[0][1], strict=True):
            for metric in set(whole) - {"tokens_per_s"}:
                assert ours[metric] == pytest.approx(whole[metric], abs=3e-6, rel=3e-6), metric
        assert max((weights[name] - results[0][2][name]).abs().max() for name in weights) < 1e-6


def test_live_weights_are_the_frozen_ones_before_the_first_step(make_stage):
    losses = []
    for annotation in ("frozen", "live"):
        stage = make_stage(*QUICK, f"stage.annotation={annotation}", "stage.ratio=0.9", "stage.min_prob=0.0001")
        assert sum(int(note.seed_T.sum()) for note in stage.stage.annotations) > 0
        losses.append([
            stage.hook.compute_loss(run=stage.run, models=stage.models, micro_batch=row).loss.item()
            for row in stage.collect().updates[0]
        ])  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_negative_tokens_of_real_steps_lose_probability(make_stage):
    stage = make_stage(
        "stage=nlft", "stage.lr=3e-3", "stage.max_steps=12", "stage.ratio=0.9", "stage.min_prob=0.0001",
        "stage.negative_nll=none",
    )  # fmt: skip
    stage.fit()
    rows = [json.loads(line) for line in (stage.run.folder / "metrics.jsonl").read_text().splitlines()]
    followed = [row["eval/negative_prob"] for row in rows if "eval/negative_prob" in row]
    assert len(followed) == 2 and followed[1] < 0.8 * followed[0]


def test_heat_maps_stand_in_terminal_and_report(make_stage, capfd):
    stage = make_stage("stage=nlft", "stage.ratio=0.9", "stage.min_prob=0.0001")
    out = capfd.readouterr().out
    assert "tokens negative: " in out and "[[-" in out
    plugin = stage.stage
    section = plugin.report_section(StageResult("nlft"))
    assert section.html.count('<i class="down"') > 0
    assert f"{len(plugin.examples)} wrong" in section.markdown and "`" in section.markdown


# ---- records -----------------------------------------------------------------------------------------------------

ASKED = (Message("user", "What is 2 + 3?"),)


def record(**fields: Any) -> Record:
    extra = fields.pop("extra", None)
    return Record(prompt=ASKED, meta={"extra": extra} if extra else {}, **fields)


@pytest.mark.parametrize(
    ("given_", "gold", "final", "answer", "right", "judgement"),
    [
        (record(completion="2 + 3 = 5\n#### 5"), "2 + 3 = 5\n#### 5", "5", None, None, None),
        (record(completion="5", answer="5"), "5", "5", None, None, None),
        (record(chosen="5", rejected="6"), "5", "5", "6", False, None),
        (record(completion="6", extra={"gold": "5", "judgement": "off by one"}), "5", "5", "6", False, "off by one"),
        (record(completion="5", extra={"gold": "5", "judgement": ""}), "5", "5", "5", True, ""),
        (record(completion="6", answer="5", extra={"judgement": "no"}), "5", "5", "6", False, "no"),
        (record(completion="6", extra={"gold": "5"}), "5", "5", "6", None, None),
        (record(completion="6", label=False, answer="5"), "5", "5", "6", False, None),
        (record(completion="6 or 5", spans=(Span(0, 1, "wrong"),)), "", "", "6 or 5", False, None),
    ],
)
def test_what_a_record_brings(given_, gold, final, answer, right, judgement):
    item = item_of(given_, CFG)
    assert (item.gold, item.final, item.answer, item.right, item.judgement) == (gold, final, answer, right, judgement)


def test_the_final_answer():
    assert final_answer("one #### two #### 72") == "72"
    assert final_answer("Lima") == "Lima"


def test_prompts_are_filled_in_once():
    prompt = [Message("system", "Be brief."), Message("user", "Say {gold} and {prompt}.")]
    made = conditioned(prompt, "Look it up.", "{prompt}\nGold: {gold}", gold="{prompt}")
    assert made == [
        Message("system", "Be brief.\nLook it up."),
        Message("user", "Say {gold} and {prompt}.\nGold: {prompt}"),
    ]
    assert conditioned(prompt[1:], "X", "{prompt}")[0] == Message("system", "X")
    assert prompt[1].content == "Say {gold} and {prompt}."


# ---- spans -------------------------------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=40), st.data())
@settings(deadline=None)
def test_span_tokens_cover_the_span_and_nothing_apart(text, data):
    tokenizer = tiny_tokenizer()
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    flags = tokens_of_spans(text, encoded["offset_mapping"], [(start, end)])
    assert len(flags) == len(encoded["input_ids"])
    covered = {
        place for flag, (a, b) in zip(flags, encoded["offset_mapping"], strict=True) if flag for place in range(a, b)
    }
    assert {place for place in range(start, end) if text[place].strip()} <= covered
    for flag, (a, b) in zip(flags, encoded["offset_mapping"], strict=True):
        assert flag == bool(text[max(a, start) : min(b, end)].strip())


def test_marked_tokens_are_pushed_and_the_rest_is_pulled():
    note = annotate_spans(torch.tensor([False, True, False]), logs(0.25, 0.5, 1.0), NlftConfig(span_weight=0.7))
    assert note.push_T.tolist() == pytest.approx([0, 0.7, 0])
    assert note.pull_T.tolist() == pytest.approx([0.5, 0, 1.0])
    assert annotate_spans(torch.tensor([False, True]), None, CFG).pull_T.tolist() == [1.0, 0.0]


def test_span_feedback_reaches_the_right_tokens(make_stage):
    from plugins.nlft.stage import _example

    stage = make_stage("stage=nlft")
    text = "the number is nine after two"
    start = text.index("nine")
    item = item_of(Record(prompt=ASKED, completion=text, spans=(Span(start, start + 4, "wrong"),)), CFG)
    example = _example(stage.run.codec, item, CFG)
    assert list(example.prompts) == ["base"]
    assert example.answer == stage.run.codec.completions([text])[0]
    named = [token for token, flag in zip(example.answer, example.marked, strict=True) if flag]
    assert stage.run.codec.text(named).strip() == "nine"
    assert example.marked[-1] is False
    note = annotation_of(example, {}, None, CFG)
    assert note.seed_T.tolist() == list(example.marked)


# ---- answers and judgements --------------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Questions with gold answers alone."""
    path = tmp_path / "sft.jsonl"
    rows = [{"question": f"What is {n} plus one?", "answer": f"#### {n + 1}"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def built(stage: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage.run.folder / "built" / "feedback.jsonl").read_text().splitlines()]


def test_answers_are_made_judged_and_never_made_twice(make_stage, questions, monkeypatch):
    words = ("stage=nlft", f"data.path={questions}", "stage.max_new_tokens=5", "stage.batch_size=2",
             "stage.heldout_answers=2", "stage.ratio=0.9", "stage.min_prob=0.0001")  # fmt: skip
    stage = make_stage(*words)
    rows = built(stage)
    assert len(rows) == len(stage.data.train) > 32
    assert {row["right"] for row in rows} == {False}
    assert rows[0]["judgement"] == RULE.format(gold=rows[0]["answer"])
    for row, example in zip(rows, stage.stage.examples, strict=True):
        assert row["messages"][-1]["content"] == stage.run.codec.text(row["completion_ids"])
        assert example.answer == row["completion_ids"] and 0 < len(example.answer) <= 5
    metrics = stage.evaluate().metrics
    assert 0 < metrics["heldout_negative_prob"] < 1

    # The control finds the same answers made, and trains on the right ones alone: here on none.
    again = make_stage(*words, "stage.arm=sft")
    assert built(again) == rows and again.data.train == []

    # What was built loads by its path alone, with answers and judgements as they were.
    monkeypatch.setattr("plugins.nlft.build.build_rows", lambda *_: pytest.fail("made again"))
    loaded = make_stage(
        "stage=nlft", f"data.path={stage.run.folder / 'built' / 'feedback.jsonl'}", "data.heldout_frac=0"
    )
    assert [example.right for example in loaded.stage.examples] == [False] * len(rows)
    first = Message("user", rows[0]["messages"][0]["content"])
    judged = [one for one in loaded.run.plan.dataset.train if one.prompt == (first,)]
    assert [item_of(one, CFG).judgement for one in judged] == [rows[0]["judgement"]]


class Judge:
    """Says a reason, nothing, yes, or fails, by the place of the answer."""

    def score(self, requests: Any) -> list[Score]:
        said = [Score(0.0, text="Off by one."), Score(0.0), Score(1.0, text="Fine."), Score(None, error="down")]
        return [said[place % 4] for place in range(len(requests))]

    def close(self) -> None: ...


def test_what_the_judge_says_and_what_it_fails_on(make_stage, questions, monkeypatch):
    from core.training.parts import Parts

    monkeypatch.setattr(Parts, "judge", lambda _: Judge())
    stage = make_stage("stage=nlft", f"data.path={questions}", "stage.max_new_tokens=4", "data.limit=9",
                       "stage.batch_size=1", "data.heldout_frac=0")  # fmt: skip
    rows = built(stage)
    assert [(row["right"], row["judgement"]) for row in rows[:3]] == [
        (False, "Off by one."), (False, RULE.format(gold=rows[1]["answer"])), (True, "")
    ]  # fmt: skip
    assert any("2 answers are left out: 2 × the judge failed: down" in line for line in stage.run.log.warnings)
    assert len(stage.data.train) == 7 == stage.total_steps() / 3
    control = make_stage("stage=nlft", f"data.path={questions}", "stage.max_new_tokens=4", "data.limit=9",
                         "stage.batch_size=1", "data.heldout_frac=0", "stage.arm=sft")  # fmt: skip
    (right,) = {tuple(example.answer) for example in control.data.train[:1]}
    (row,) = training_rows(control.data.train[:1], control.stage.annotations[2:3], control.run.cfg.stage)
    pull_M, push_M = token_weights(row, control.stage.annotations[2:3], control.run.cfg.stage)
    assert pull_M.tolist() == pytest.approx([1 / len(right)] * len(right)) and not push_M.any()

    every = make_stage("stage=nlft", f"data.path={questions}", "stage.max_new_tokens=4", "data.limit=9",
                       "stage.batch_size=1", "data.heldout_frac=0", "stage.arm=sft_all")  # fmt: skip
    assert len(every.data.train) == 7
    (row,) = training_rows(every.data.train, every.stage.annotations, every.run.cfg.stage)
    pull_M, push_M = token_weights(row, every.stage.annotations, every.run.cfg.stage)
    answers = [example.answer for example in every.data.train]
    assert pull_M.tolist() == pytest.approx([1 / (7 * len(answer)) for answer in answers for _ in answer])
    assert not push_M.any() and len(pull_M) == sum(map(len, answers))


def test_the_record_knows_better_than_the_judge():
    from plugins.nlft.build import _judged

    wrong = item_of(record(chosen="5", rejected="five"), CFG)
    assert _judged(wrong, Score(1.0, text="Fine."), 0.5)[0].judgement == RULE.format(gold="5")
    assert _judged(wrong, Score(0.0, text="A word."), 0.5)[0].judgement == "A word."


@pytest.mark.parametrize(
    "words",
    [
        ("stage.tau=1",), ("judge=endpoint",), ("stage.judge_prompt=x",), ("stage.min_prob=1",),
        ("judge=nothing",), ("peft=prompt_tuning",),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(make_stage, words):
    with pytest.raises(PreftuneError):
        make_stage("stage=nlft", *words)
