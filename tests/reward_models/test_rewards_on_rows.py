"""Rewards and judges that read a record's answer or columns, on rows that came through a reader."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.api import GuardedScorer, PluginError, ScorerContext, ScoreRequest
from core.data.dataset import load_dataset
from core.data.loading import load_records
from core.data.records import Record
from core.data.views import as_schema
from core.settings.convert import from_plain
from core.settings.data_schema import DataConfig
from core.testing.run import StageRunner, make_lab
from core.tokens.frames import Said
from reward_models import register_reward_models
from reward_models.sandbox import Limits, Sandbox
from reward_models.verdict import question_of

DATA = Path(os.environ.get("PREFTUNE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
SPECS = {spec.name: spec for spec in register_reward_models()}
TWICE = "def twice(x):\n    return 2 * x"
TESTS = ["assert twice(2) == 4", "assert twice(-1) == -2"]


def scores(name: str, options: dict[str, Any], requests: list[ScoreRequest]) -> list[float | None]:
    """Values of a guarded scorer."""
    config = from_plain(SPECS[name].config, {"name": name, **options})
    scorer = GuardedScorer(SPECS[name], config, ScorerContext(specs=SPECS))
    try:
        return [score.value for score in scorer.score(requests)]
    finally:
        scorer.close()


def asked(record: Record, completion: str) -> ScoreRequest:
    """As a run asks: see core.training.evaluate."""
    return ScoreRequest(record.prompt[-1].content, completion, (1,), (2,), record.answer, dict(record.meta))


def prompts(tmp_path: Path, row: dict[str, Any], name: str = "rows.jsonl") -> list[Record]:
    """The prompts that an online stage takes of a file of such rows."""
    path = tmp_path / name
    if name.endswith("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([row, {**row, **_other(row)}]), path)
    else:
        path.write_text(json.dumps(row) + "\n" + json.dumps({**row, **_other(row)}) + "\n")
    return list(load_dataset(DataConfig(heldout_frac=0.0), path, "prompts", 0).train)


def _other(row: dict[str, Any]) -> dict[str, Any]:
    first = next(name for name, value in row.items() if isinstance(value, str))
    return {first: row[first] + " Again."}


CODE = {"limit_s": 5.0, "timeout_s": 60.0}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str]] = {
    # reward, its options, a row, an answer that is right, one that is wrong
    "exact on a gold answer": ("exact", {}, {"prompt": "Is 1 a number?", "answer": "yes"}, "yes", "no"),
    "exact on question and answer": ("exact", {}, {"question": "Is 1 a number?", "answer": "yes"}, "yes", "no"),
    "exact on a choice": (
        "exact", {}, {"question": "Hi?", "choices": ["a", "b"], "answer": 1}, "B", "A",
    ),
    "exact on a class": ("exact", {}, {"text": "My card is lost", "category": "lost_card"}, "lost_card", "greeting"),
    "exact on a number": ("exact", {}, {"question": "1 + 1?", "answer": 2}, "2", "3"),
    "exact on a truth value": ("exact", {"lower": True}, {"prompt": "Is it so?", "answer": True}, "true", "false"),
    "numeric on worked answers": (
        "numeric", {}, {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}, "It is\n#### 2", "#### 3",
    ),
    "numeric on a story": (
        "numeric", {}, {"Body": "Ann has 3 pens.", "Question": "How many?", "Answer": 3.0}, "3", "4",
    ),
    "numeric beside a completion": (
        "numeric", {}, {"prompt": "2 + 2?", "completion": "Four.", "answer": "4"}, "The answer is 4", "5",
    ),
    "code on MBPP": (
        "code", CODE, {"task_id": 1, "text": "Double.", "code": TWICE, "test_list": TESTS, "test_setup_code": ""},
        TWICE, "def twice(x): return x",
    ),
    "code with a setup": (
        "code", CODE, {"text": "Double.", "code": TWICE, "test_list": ["assert two == twice(1)"],
                       "test_setup_code": "two = 2"}, TWICE, "def twice(x): return x",
    ),
    "code with a setup that needs the program": (
        "code", CODE, {"text": "Double.", "code": TWICE, "test_list": ["assert two == 2"],
                       "test_setup_code": "two = twice(1)"}, TWICE, "def twice(x): return x",
    ),
    "code on a column called tests": (
        "code", CODE, {"prompt": "Double.", "solution": TWICE, "tests": TESTS}, TWICE, "twice = abs",
    ),
    "code on prompts alone": ("code", CODE, {"prompt": "Double.", "test_cases": TESTS}, TWICE, "twice = abs"),
    "code on tests in one text": (
        "code", CODE, {"prompt": "Double.", "completion": TWICE, "tests": "\n".join(TESTS)}, TWICE, "twice = abs",
    ),
    "code on tests as JSON": (
        "code", CODE, {"instruction": "Double.", "output": TWICE, "unit_tests": json.dumps(TESTS)}, TWICE,
        "twice = abs",
    ),
    "code beside messages": (
        "code", CODE,
        {"messages": [{"role": "user", "content": "Double."}, {"role": "assistant", "content": TWICE}],
         "test_list": TESTS, "id": "x"},
        TWICE, "twice = abs",
    ),
    "code on a column of another name": (
        "code", {**CODE, "tests": "challenge_test_list"},
        {"text": "Double.", "code": TWICE, "test_list": ["assert False"], "challenge_test_list": TESTS}, TWICE, "x = 1",
    ),
    "code on the column that was read": (
        "code", {**CODE, "tests": "tests"}, {"text": "Double.", "code": TWICE, "tests": TESTS}, TWICE, "twice = abs",
    ),
    "code on an answer": ("code", CODE, {"prompt": "Double.", "answer": TESTS[0]}, TWICE, "twice = abs"),
    "an ensemble": (
        "ensemble", {"members": [{"name": "exact"}, {"name": "numeric"}]}, {"question": "1 + 1?", "answer": "2"}, "2",
        "3",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> None:
    try:
        Sandbox(Limits(seconds=5.0))
    except PluginError as error:
        pytest.skip(f"no namespaces here: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_reward_finds_what_it_asks_for(tmp_path: Path, sandbox: None, name: str) -> None:
    """All rows first, then a scorer for each reward and its options: a worker takes a second to start."""
    waiting: dict[str, list[tuple[str, ScoreRequest, float]]] = {}
    for case, (reward, options, row, right, wrong) in CASES.items():
        (tmp_path / case).mkdir()
        records = prompts(tmp_path / case, row, name)
        assert records, case
        group = waiting.setdefault(json.dumps([reward, options]), [])
        for record in records:
            group += [(case, asked(record, right), 1.0), (case, asked(record, wrong), 0.0)]
    for key, group in waiting.items():
        reward, options = json.loads(key)
        found = scores(reward, options, [request for _, request, _ in group])
        assert [(case, value) for (case, _, _), value in zip(group, found, strict=True)] == [
            (case, wanted) for case, _, wanted in group
        ]


def test_every_reward_that_reads_the_record_is_in_the_table() -> None:
    without = {"regex", "format", "length", "json", "learned"}  # read the completion alone
    judged = {"llm", "embedding", "endpoint"}  # read the gold answer, see below
    assert {case[0] for case in CASES.values()} | without | judged == set(SPECS)


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}, "2"),
        ({"prompt": "a", "completion": "b", "answer": 3}, "3"),
        ({"question": "Hi?", "choices": ["a", "b"], "answer": 1}, "B"),
    ],
)  # fmt: skip
def test_a_model_is_asked_with_the_gold_answer(tmp_path: Path, row: dict[str, Any], gold: str) -> None:
    record = prompts(tmp_path, row)[0]
    text = question_of(asked(record, "mine"), "{question}|{reference}|{answer}")
    assert text == f"{record.prompt[-1].content}|{gold}|mine"


@pytest.mark.slow
def test_a_judge_of_programs_runs_the_tests_of_the_record(tmp_path: Path, sandbox: None) -> None:
    """What stage s3ft asks its judge."""
    from plugins.s3ft.stage import _judge

    path = tmp_path / "rows.jsonl"
    row = {"task_id": 1, "text": "Double.", "code": TWICE, "test_list": TESTS, "test_setup_code": ""}
    path.write_text(json.dumps(row) + "\n")
    record = load_dataset(DataConfig(heldout_frac=0.0), path, "sft", 0).train[0]
    item = SimpleNamespace(record=record, prompt=[1], gold_text=record.completion)
    texts = ("twice = lambda x: x + x", "twice = abs")
    answers = [SimpleNamespace(ids=[place]) for place in range(2)]
    codec = SimpleNamespace(said=lambda ids: Said("", texts[ids[0]]))
    config = from_plain(SPECS["code"].config, {"name": "code", **CODE})
    judge = GuardedScorer(SPECS["code"], config, ScorerContext(specs=SPECS))
    parts = SimpleNamespace(judge=lambda: judge)
    run: Any = SimpleNamespace(log=SimpleNamespace(timed=_untimed), parts=parts, codec=codec)
    try:
        assert [score.value for score in _judge(run, [(item, answer) for answer in answers])] == [1.0, 0.0]
    finally:
        judge.close()


def _untimed(_name: str) -> Any:
    from contextlib import nullcontext

    return nullcontext()


# ---- MBPP, from the file to the score -------------------------------------------------------------------------------


def mbpp() -> list[Record]:
    path = DATA / "mbpp" / "mbpp.jsonl"
    if not path.is_file():
        pytest.skip("no MBPP rows")
    return as_schema(load_records([path]).records, "sft")


@pytest.mark.slow
def test_gold_programs_of_mbpp_pass(sandbox: None) -> None:
    records = mbpp()[::80]
    assert len(records) == 13
    assert scores("code", CODE, [asked(record, record.completion or "") for record in records]) == [1.0] * 13


@pytest.mark.long
def test_all_gold_programs_of_mbpp_pass(sandbox: None) -> None:
    records = mbpp()
    found = scores(
        "code", {"limit_s": 30.0, "timeout_s": 90.0}, [asked(record, record.completion or "") for record in records]
    )
    assert len(found) == 974
    assert [record.meta["line"] for record, value in zip(records, found, strict=True) if value != 1.0] == []


@pytest.mark.slow
def test_a_run_of_grpo_on_programs_starts_and_finishes(tmp_path: Path, sandbox: None) -> None:
    """Rows as the file has them. A random model solves nothing, and each of its completions is scored."""
    path = tmp_path / "mbpp.jsonl"
    row = {"code": TWICE, "test_list": TESTS, "test_setup_code": "", "challenge_test_list": []}
    path.write_text("".join(json.dumps({"task_id": i, "text": f"Double {i}.", **row}) + "\n" for i in range(12)))
    done = StageRunner(make_lab(tmp_path / "lab"), tmp_path)(
        "stage=rlhf", "algorithm=grpo", "reward=code", f"data.path={path}", "stage.max_steps=2", "stage.batch_size=2",
        "stage.group_size=2", "stage.max_new_tokens=4", "rollout=transformers",
    )  # fmt: skip
    done.assert_ok()
    assert len(done.steps) == 2 and "columns       prompt ← text, completion ← code, tests ← test_list" in done.out
    shown = [json.loads(line) for line in (done.folder / "samples.jsonl").read_text().splitlines()]
    assert shown and {row["reward"] for row in shown} == {0.0}
