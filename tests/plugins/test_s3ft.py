"""S3FT: the router's three branches, targets that are trained as they were drawn, builds that go on, bad judges."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from core.api import ConfigError, Message, PluginError, Record, Score
from core.data.loading import load_records
from core.platform.switches import MODULES_VARIABLE
from plugins.s3ft import LEAKS, REMNANTS, RewriteConfig, SelfConfig
from plugins.s3ft.composition import composition, section
from plugins.s3ft.route import GOLD, PARAPHRASE, SELF, Answer, Filters, PromptItem, route
from plugins.s3ft.stage import _rewriting

EOS = 2

# ---- the router ------------------------------------------------------------------------------------------------------


def an_item(name: str, gold: Sequence[int] = (9, EOS)) -> PromptItem:
    return PromptItem(Record(prompt=(Message("user", name),), completion="gold"), [1, 5], f"gold of {name}", list(gold))


def an_answer(text: str, *ids: int, finished: bool = True) -> Answer:
    return Answer([*(ids or (len(text),)), EOS], text, finished)


def routed(
    plan: dict[str, dict[str, list[Answer]]],
    branches: Sequence[str] = (SELF, PARAPHRASE),
    filters: Callable[..., str] | None = None,
):
    """Targets of the items in `plan` (name to branch to answers); the judge takes texts that begin with "right"."""
    asked: list[tuple[str, str]] = []

    def sample(branch: str, items: Sequence[PromptItem]) -> list[list[Answer]]:
        asked.extend((branch, item.record.prompt[0].content) for item in items)
        return [plan[item.record.prompt[0].content].get(branch, []) for item in items]

    def judge(candidates: Sequence[tuple[PromptItem, Answer]]) -> list[Score]:
        return [
            Score(None, error="broken") if "broken" in answer.text else Score(float(answer.text.startswith("right")))
            for _, answer in candidates
        ]

    def likeliest(cases: Sequence[tuple[PromptItem, Sequence[Answer]]]) -> list[int]:
        return [max(range(len(answers)), key=lambda place: answers[place].ids[0]) for _, answers in cases]

    fault = filters or Filters(REMNANTS, LEAKS, [0, 1, EOS], 20)
    items = [an_item(name) for name in plan]
    targets = route(items, branches, sample, fault, judge, 0.5, likeliest)
    return items, targets, asked


def test_the_three_branches():
    own, wrong, other = an_answer("right", 7), an_answer("wrong", 8), an_answer("right again", 6)
    items, targets, asked = routed(
        {"a": {SELF: [own], PARAPHRASE: [other]}, "b": {SELF: [wrong], PARAPHRASE: [other]},
         "c": {SELF: [wrong], PARAPHRASE: [wrong]}}
    )  # fmt: skip
    assert [target.branch for target in targets] == [SELF, PARAPHRASE, GOLD]
    assert [target.ids for target in targets] == [own.ids, other.ids, items[2].gold]
    assert targets[2].text == "gold of c"
    assert [target.rejected for target in targets] == [
        {}, {SELF: "judged wrong"}, {SELF: "judged wrong", PARAPHRASE: "judged wrong"},
    ]  # fmt: skip
    assert asked == [(SELF, "a"), (SELF, "b"), (SELF, "c"), (PARAPHRASE, "b"), (PARAPHRASE, "c")]


def test_ssr_never_rewrites_and_sdft_always_does():
    answers = {SELF: [an_answer("wrong")], PARAPHRASE: [an_answer("right")]}
    _, [target], asked = routed({"a": answers}, branches=(SELF,))
    assert target.branch == GOLD and asked == [(SELF, "a")]
    _, [target], asked = routed({"a": {**answers, SELF: [an_answer("right")]}}, branches=(PARAPHRASE,))
    assert target.branch == PARAPHRASE and asked == [(PARAPHRASE, "a")]


def test_a_judges_error_is_never_right_and_is_counted():
    broken = {SELF: [an_answer("right but broken")], PARAPHRASE: [an_answer("right but broken")]}
    _, targets, _ = routed({"a": broken, "b": {SELF: [an_answer("right")]}})
    assert [target.branch for target in targets] == [GOLD, SELF]
    assert targets[0].errors == ["broken", "broken"] and targets[1].errors == []
    assert targets[0].rejected == {SELF: "judge error", PARAPHRASE: "judge error"}


def test_of_several_right_answers_the_likeliest_is_taken():
    drawn = [an_answer("right", 3), an_answer("wrong", 9), an_answer("right", 5), an_answer("right", 4)]
    _, [target], _ = routed({"a": {SELF: drawn}})
    assert target.ids[0] == 5


@pytest.mark.parametrize(
    ("branch", "answer", "reason"),
    [
        (SELF, an_answer("right", finished=False), "cut off"),
        (SELF, an_answer(" \n"), "empty"),
        (SELF, Answer([3] * 30 + [EOS], "right", True), "too long"),
        (SELF, an_answer("right", 4, 1, 6), "template remnant"),
        (SELF, an_answer("right<|im_start|>user"), "template remnant"),
        (SELF, an_answer("right\nUser:\nand you?"), "template remnant"),
        (SELF, an_answer("right [INST] x"), "template remnant"),
        (PARAPHRASE, an_answer("right, as the reference says"), "speaks of the reference"),
        (PARAPHRASE, an_answer("right, in my own words"), "speaks of the reference"),
        (PARAPHRASE, an_answer("gold  of a"), "copy of the gold answer"),
        (SELF, an_answer("right, as the reference says"), ""),
        (PARAPHRASE, an_answer("The user said: the answer is right"), ""),
        (PARAPHRASE, an_answer("So the correct answer is 5"), ""),
    ],
)
def test_filters(branch, answer, reason):
    assert Filters(REMNANTS, LEAKS, [0, 1, EOS], 20)(branch, an_item("a"), answer) == reason


def test_a_filtered_answer_is_not_asked_about():
    judged: list[str] = []

    def judge(candidates):
        judged.extend(answer.text for _, answer in candidates)
        return [Score(1.0)] * len(candidates)

    [target] = route(
        [an_item("a")], [SELF], lambda *_: [[an_answer("x", finished=False)]], Filters([], [], [], 99), judge, 0.5,
        lambda cases: [0] * len(cases),
    )  # fmt: skip
    assert target.branch == GOLD and judged == []


ANSWERS = st.builds(
    Answer,
    st.lists(st.integers(3, 9), max_size=4).map(lambda ids: [*ids, EOS]),
    st.sampled_from(["right", "wrong", "broken", ""]),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.fixed_dictionaries({SELF: st.lists(ANSWERS, max_size=3), PARAPHRASE: st.lists(ANSWERS, max_size=3)}),
                min_size=1, max_size=6))  # fmt: skip
def test_targets_are_answers_judged_right_or_gold_ids_untouched(plans):
    items, targets, _ = routed({str(place): plan for place, plan in enumerate(plans)})
    for item, plan, target in zip(items, plans, targets, strict=True):
        right = {branch: [answer for answer in plan[branch] if answer.finished and answer.text == "right"]
                 for branch in (SELF, PARAPHRASE)}  # fmt: skip
        expected = SELF if right[SELF] else PARAPHRASE if right[PARAPHRASE] else GOLD
        assert target.branch == expected
        allowed = [item.gold] if expected == GOLD else [answer.ids for answer in right[expected]]
        assert target.ids in allowed
        assert target.ids[-1] == EOS


def test_the_request_to_rewrite_is_filled_in_one_pass():
    item = PromptItem(
        Record(prompt=(Message("system", "s"), Message("user", "Is {reference} a word?"))), [], "No {question}", []
    )
    system, user = _rewriting(item, "Q: {question} R: {reference} again {question}")
    assert system == Message("system", "s")
    assert user.content == "Q: Is {reference} a word? R: No {question} again Is {reference} a word?"


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="greedy"):
        SelfConfig(samples=4)
    with pytest.raises(ConfigError, match="question"):
        RewriteConfig(rewrite_prompt="{reference}")
    with pytest.raises(ConfigError, match=r"stage.leaks\[0\]"):
        RewriteConfig(leaks=["("])


# ---- the composition -------------------------------------------------------------------------------------------------


def a_row(branch: str, logprob: float, gold_logprob: float, tokens: int = 3) -> dict:
    turns = [{"role": "user", "content": "<b>q</b>"}, {"role": "assistant", "content": "a & b"}]
    return {"messages": turns, "branch": branch, "gold": "g", "logprob": logprob, "gold_logprob": gold_logprob,
            "completion_ids": [5] * tokens, "gold_tokens": 4, "rejected": {}, "judge_errors": []}  # fmt: skip


def test_composition_counts_and_averages():
    facts = composition([a_row(SELF, -0.5, -2.0), a_row(SELF, -1.5, -3.0), a_row(GOLD, -4.0, -4.0, 4)])
    assert (facts["share_self"], facts["share_paraphrase"], facts["share_gold"]) == (2 / 3, 0, 1 / 3)
    assert (facts["logprob_self"], facts["gold_logprob_self"], facts["logprob_gold"]) == (-1.0, -2.5, -4.0)
    assert "logprob_paraphrase" not in facts
    assert (facts["target_tokens"], facts["gold_tokens"]) == (10, 12)


def test_the_report_escapes_what_a_model_wrote():
    part = section([a_row(SELF, -0.5, -2.0)], "s3ft", "exact")
    assert "<b>q</b>" not in part.html and "&lt;b&gt;q" in part.html
    assert "100.0%" in part.markdown


# ---- the stage on a tiny model, its answers planted ------------------------------------------------------------------


@pytest.fixture
def s3ft(make_stage, planted, monkeypatch):
    """Builds the stage with a planted engine."""

    def make(write, *words: str):
        monkeypatch.setenv(MODULES_VARIABLE, "toy_rewards,route_judges")
        stage = make_stage("stage=s3ft", "stage.max_new_tokens=16", "stage.batch_size=8", "data.limit=16",
                           "model.max_length=400", "stage.build_batch=4", *words)  # fmt: skip
        stage.engine = planted(stage.run.codec, write)
        monkeypatch.setattr(stage.run.parts, "engine", lambda: stage.engine)
        return stage

    return make


def gold_in(asked: str) -> str:
    """The reference in a request to rewrite; empty where there is none."""
    return asked.partition("Reference:\n")[2].partition("\n")[0]


def test_targets_are_trained_as_they_were_drawn(s3ft):
    stage = s3ft(lambda asked: (f"it is {gold_in(asked)}", True) if gold_in(asked) else ("one", True), "judge=odd")
    stage.make_data()
    rows = [json.loads(line) for line in (stage.run.folder / "built" / "sft.jsonl").read_text().splitlines()]
    assert {row["branch"] for row in rows} == {PARAPHRASE}
    for item, row, example in zip(stage.data.items, rows, stage.data.train, strict=True):
        text = f"it is {item.gold_text}"
        assert row["messages"][-1] == {"role": "assistant", "content": text}
        trained = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
        assert trained == row["completion_ids"] and trained[-1] == stage.run.codec.eos
        assert stage.run.codec.text(trained) == text
        assert list(example.ids[: len(item.prompt)]) == item.prompt
        assert "Reference" not in stage.run.codec.tokenizer.decode(example.ids)
    facts = stage.recorder.facts
    assert facts["share_paraphrase"] == 1.0 and facts["items"] == len(rows)
    first = json.loads((stage.run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0 and first["data/share_paraphrase"] == 1.0


def test_the_saved_targets_load_by_their_path_alone(s3ft):
    stage = s3ft(lambda asked: ("so it is two", True), "judge=odd")
    stage.make_data()
    loaded = load_records([stage.run.folder / "built" / "sft.jsonl"])
    rows = [json.loads(line) for line in (stage.run.folder / "built" / "sft.jsonl").read_text().splitlines()]
    assert loaded.quarantined == []
    assert [record.completion for record in loaded.records] == [row["messages"][-1]["content"] for row in rows]
    assert [record.prompt for record in loaded.records] == [item.record.prompt for item in stage.data.items]
    assert [record.answer for record in loaded.records] == [item.record.answer for item in stage.data.items]
    assert {row["branch"] for row in rows} == {SELF, GOLD}


def test_start_log_probabilities_are_those_of_a_plain_forward_pass(s3ft):
    stage = s3ft(lambda asked: ("so it is two", True), "judge=odd")
    stage.make_data()
    row = json.loads((stage.run.folder / "built" / "sft.jsonl").read_text().splitlines()[0])
    item = stage.data.items[0]
    plain = AutoModelForCausalLM.from_pretrained(stage.models.start.folder, dtype=torch.float32)
    for ids, mean in ((row["completion_ids"], row["logprob"]), (item.gold, row["gold_logprob"])):
        with torch.no_grad():
            logits_TV = plain(input_ids=torch.tensor([[*item.prompt, *ids]])).logits[0, len(item.prompt) - 1 : -1]
        expected = logits_TV.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).mean()
        assert math.isclose(mean, expected.item(), abs_tol=1e-4)


def test_a_build_that_was_interrupted_goes_on_and_repeats_nothing(s3ft):
    def write(asked: str):
        if write.left == 0:
            raise RuntimeError("killed")
        write.left -= 1
        return f"it is {gold_in(asked)}" if gold_in(asked) else "one", True

    write.left = 20  # each batch of 4 asks 8 times: the third is cut in its midst
    stage = s3ft(write, "judge=odd")
    with pytest.raises(PluginError, match="killed"):
        stage.make_data()
    [rows_file] = Path(stage.run.cfg.runs_dir).glob(".builds/*/rows.jsonl")
    assert len(rows_file.read_text().splitlines()) == 8
    with rows_file.open("a") as file:
        file.write('{"half a row')  # what a kill in the midst of writing leaves
    write.left = -1
    again = s3ft(write, "judge=odd")
    again.make_data()
    assert again.engine.prompts == 2 * (len(again.data.items) - 8)
    whole = s3ft(write, "judge=odd", "reuse=false")
    whole.make_data()
    assert whole.engine.prompts == 2 * len(whole.data.items)
    texts = [(stage.run.folder / "built" / "sft.jsonl").read_text() for stage in (again, whole)]
    assert texts[0] == texts[1]


def test_a_finished_build_serves_runs_with_other_training_settings(s3ft):
    stage = s3ft(lambda asked: ("so it is two", True), "judge=odd")
    stage.make_data()
    other = s3ft(lambda asked: ("never asked", True), "judge=odd", "stage.lr=1e-3", "stage.epochs=5")
    other.make_data()
    assert other.engine.prompts == 0
    for change in ("judge.threshold=0.7", "stage.max_new_tokens=12", "algorithm=ssr"):
        different = s3ft(lambda asked: ("so it is two", True), "judge=odd", change)
        different.make_data()
        assert different.engine.prompts > 0, change


def test_bad_judges_cost_their_items_alone(s3ft):
    said = iter(["raise", "nonsense", "exit", "hang"])
    stage = s3ft(lambda asked: (next(said, "so it is two"), True), "algorithm=ssr", "judge=odd", "judge.timeout_s=1")
    stage.make_data()
    rows = [json.loads(line) for line in (stage.run.folder / "built" / "sft.jsonl").read_text().splitlines()]
    assert [row["branch"] for row in rows[:4]] == [GOLD] * 4
    assert [len(row["judge_errors"]) for row in rows] == [1] * 4 + [0] * (len(rows) - 4)
    errors = [row["judge_errors"][0] for row in rows[:4]]
    for word, error in zip(
        ("told to fail", "must return Score", "exited with code 3", "timed out"), errors, strict=True
    ):
        assert word in error
    assert SELF in {row["branch"] for row in rows[4:]}
    assert stage.recorder.facts["judge_errors"] == 4
    assert any("the judge failed on 4 answers" in warning for warning in stage.run.log.warnings)


def test_what_leaves_no_room_to_answer_gets_the_gold_answer(s3ft):
    stage = s3ft(lambda asked: ("so it is two", True), "judge=odd", "model.max_length=90", "stage.max_new_tokens=80")
    stage.make_data()
    assert stage.engine.prompts == 0
    assert stage.recorder.facts["share_gold"] == 1.0


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["s3ft", "ssr", "sdft"])
def test_the_tiny_model_answers_and_trains(make_stage, algorithm):
    stage = make_stage(
        "stage=s3ft", f"algorithm={algorithm}", "stage.max_new_tokens=8", "stage.batch_size=8", "stage.max_steps=3",
        "model.max_length=400", "stage.lr=1e-3", "stage.samples=2", "stage.temperature=1", "judge=length",
        "judge.target_chars=1000000", "judge.threshold=0",
    )  # fmt: skip
    stage.make_data()
    steps = stage.fit()
    assert len(steps) == 3 and all(math.isfinite(row["loss"]) for row in steps)
    assert stage.recorder.facts["items"] == len(stage.data.train)
    assert stage.recorder.facts["share_paraphrase" if algorithm == "ssr" else "judge_errors"] == 0


@pytest.mark.slow
def test_vllm_and_transformers_build_alike(make_stage, real_model, tmp_path):
    """Greedy answers of the 135M model to word problems: both engines find the same composition, up to rounding."""
    rng = random.Random(0)
    rows = [{"question": f"Tom has {a} apples and buys {b} more. How many apples has he? Answer with a number.",
             "response": f"He has {a} + {b} = {a + b} apples.", "answer": str(a + b)}
            for a, b in ((rng.randrange(2, 9), rng.randrange(2, 9)) for _ in range(12))]  # fmt: skip
    shares = {}
    for engine in ("transformers", "vllm"):
        path = tmp_path / "problems.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        stage = make_stage(
            "stage=s3ft", f"model.source={real_model}", f"data.path={path}", f"rollout={engine}",
            "model.max_length=384", "stage.max_new_tokens=48", "judge=numeric", "data.heldout_frac=0",
        )  # fmt: skip
        stage.make_data()
        facts = stage.recorder.facts
        shares[engine] = facts
        assert facts["share_self"] > 0
        assert facts["logprob_self"] > facts["gold_logprob_self"]
    assert abs(shares["vllm"]["items_self"] - shares["transformers"]["items_self"]) <= 2
