"""What was forgotten: the numbers equal plain loops, training does not notice, results stand where one looks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from core.data.retention_sets import GENERAL, check_retention, load_choices, set_name
from core.errors import ConfigError, DataError
from core.report.facts import collect
from core.report.format import change_text
from core.results import StageResult
from core.settings.schema import RetentionConfig
from core.training.evaluate import bootstrap
from core.training.retention import Retention

DATA = Path(os.environ.get("PREFTUNE_TEST_DATA") or Path(__file__).parents[2].parent / "shared" / "data")

QUESTIONS = [
    {"query": "Question: Which is red?", "choices": ["blue", "the color red", "green two"], "gold": 1},
    {"context_options": ["one is the number", "two after the name is the number"], "continuation": "after", "gold": 0},
    {"query": "The name is, therefore", "choices": ["two", "three"], "gold": 1},
]


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Path]:
    text, questions, table = tmp_path / "words.txt", tmp_path / "mixed.jsonl", tmp_path / "letters"
    text.write_text("the name is red after two\n" * 30)
    questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    table.mkdir()
    (table / "a.csv").write_text('"Which, then?",one,two,three,four,C\n')
    (table / "b.csv").write_text("Which?\nNow?,1,2,A\n".replace("Which?\nNow?", '"Which?\nNow?"'))
    return {"text": text, "questions": questions, "table": table}


def words(sets: dict[str, Path]) -> list[str]:
    return [f"retention.texts={sets['text']}", f"retention.choices=[{sets['questions']},{sets['table']}]",
            "retention.piece_tokens=20", "retention.max_items=5", "stage.micro_batch_tokens=150"]  # fmt: skip


def plain_logprobs(module: torch.nn.Module, context: list[int], continuation: list[int]) -> torch.Tensor:
    """Log-probabilities [M, V] of the continuation's tokens by the plain forward pass of one sequence."""
    ids = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        return module(input_ids=ids).logits[0, len(context) - 1 : -1].float().log_softmax(-1)


def shake(stage) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in stage.models.policy.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_numbers_equal_plain_loops(make_stage, sets):
    stage = make_stage("stage=sft", *words(sets))
    module, codec = stage.models.policy.module, stage.run.codec
    retention = Retention.of(stage.run, stage.models)
    assert retention is not None
    from core.data.records import Message

    prompts = codec.prompts([[Message("user", question)] for question, _ in GENERAL])
    answers = codec.completions([answer for _, answer in GENERAL])
    start = [plain_logprobs(module, *both) for both in zip(prompts, answers, strict=True)]
    assert retention.before["general_kl"].items == [0.0] * len(GENERAL)
    shake(stage)
    metrics, rows = retention.compare()

    now = [plain_logprobs(module, *both) for both in zip(prompts, answers, strict=True)]
    tokens = sum(map(len, answers))
    kl = sum((new.exp() * (new - old)).sum().item() for new, old in zip(now, start, strict=True)) / tokens
    loss = -sum(new.gather(1, torch.tensor(ids)[:, None]).sum().item() for new, ids in zip(now, answers, strict=True))
    assert metrics["retention/general_kl"] == pytest.approx(kl, rel=1e-4) and kl > 0.01
    assert metrics["retention/general_loss"] == pytest.approx(loss / tokens, rel=1e-5)

    ids = codec.tokenizer("\n".join(["the name is red after two"] * 30), add_special_tokens=False)["input_ids"]
    pieces = [ids[place : place + 20] for place in range(0, 100, 20)]
    taken = [
        plain_logprobs(module, piece[:1], piece[1:]).gather(1, torch.tensor(piece[1:])[:, None]) for piece in pieces
    ]
    wanted = -sum(part.sum().item() for part in taken) / sum(map(len, taken))
    assert metrics["retention/text_loss"] == pytest.approx(wanted, rel=1e-5)

    def ids_of(text: str) -> list[int]:
        return codec.tokenizer(text, add_special_tokens=False)["input_ids"]

    for name, path in (("mixed", sets["questions"]), (set_name(str(sets["table"])), sets["table"])):
        hits = []
        for choice in load_choices(str(path), 5):
            scores = []
            for context, continuation in choice.options:
                own = ids_of(continuation)
                logprobs = plain_logprobs(module, ids_of(context), own)
                scores.append(logprobs.gather(1, torch.tensor(own)[:, None]).mean().item())
            hits.append(float(scores.index(max(scores)) == choice.gold))
        assert metrics[f"retention/{name}"] == sum(hits) / len(hits)
        assert next(row for row in rows if row.name == name).items == len(hits)

    for row in rows:
        assert row.change == pytest.approx(row.after - row.before)
        low, high = row.interval
        assert low <= row.change <= high


def test_training_does_not_notice(make_stage, sets):
    weights = []
    for more in (["retention.general=false", "stage.micro_batch_tokens=150"], words(sets)):
        stage = make_stage("stage=sft", "stage.max_steps=3", "peft=lora", "peft.dropout=0.3", *more)
        before = torch.get_rng_state()
        Retention.of(stage.run, stage.models)
        assert torch.equal(before, torch.get_rng_state())
        assert stage.models.policy.training is False
        torch.manual_seed(5)
        stage.fit()
        weights.append(stage.weights())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_measures_stand_in_metrics_and_in_the_run(make_stage, sets):
    stage = make_stage("stage=sft", "stage.max_steps=4", "stage.eval_every_steps=2", "stage.lr=1e-3", *words(sets))
    stage.fit()
    rows = [json.loads(line) for line in (stage.run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "eval/retention/general_kl" in row]
    assert steps == [0, 4]  # not in between
    assert [row.name for row in stage.fitted.retention] == [
        "general_loss", "general_kl", "text_loss", "mixed", set_name(str(sets["table"])),
    ]  # fmt: skip
    assert stage.fitted.retention[1].before == 0 < stage.fitted.retention[1].after
    result = StageResult("sft", retention=stage.fitted.retention)
    (stage.run.folder / "result.json").write_text(json.dumps(result.to_json()))
    (table,) = [table for table in collect(stage.run.folder).tables if table["title"] == "What was forgotten"]
    assert table["pairs"][1] == ("general kl", change_text(stage.fitted.retention[1]))
    assert "8 items" in table["pairs"][1][1]


def test_only_policies_are_measured(make_stage):
    stage = make_stage("stage=reward")
    assert Retention.of(stage.run, stage.models) is None
    stage = make_stage("stage=sft", "retention.general=false")
    assert Retention.of(stage.run, stage.models) is None


def test_a_prompt_method_is_measured_too(make_stage):
    stage = make_stage("stage=sft", "peft=prompt_tuning", "peft.options.num_virtual_tokens=4")
    retention = Retention.of(stage.run, stage.models)
    assert retention is not None and retention.before["general_kl"].mean == 0


# ---- sets --------------------------------------------------------------------------------------------------------


def test_formats_of_questions(sets):
    listed, options, therefore = load_choices(str(sets["questions"]), 9)
    assert listed.options[1] == ("Question: Which is red?\nAnswer:", " the color red") and listed.gold == 1
    assert options.options == (("one is the number", " after"), ("two after the name is the number", " after"))
    assert therefore.options[0] == ("The name is, therefore", " two")
    first, second = load_choices(str(sets["table"]), 9)
    assert first.options[2] == ("Which, then?\nA. one\nB. two\nC. three\nD. four\nAnswer:", " C") and first.gold == 2
    assert second.options[0][0].startswith("Which?\nNow?\nA. 1\nB. 2") and second.gold == 0


def test_few_questions_are_spread_over_all(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"query": f"{n}", "choices": ["a", "b"], "gold": 0}) + "\n" for n in range(100)))
    assert [choice.options[0][0] for choice in load_choices(str(path), 4)] == ["0", "25", "50", "75"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"query": "x"}',
        '{"query": "x", "choices": ["a"], "gold": 0}',
        '{"query": "", "choices": ["a", "b"], "gold": 2}',
        "[1]",
    ],
)
def test_what_is_no_question_is_told_with_its_line(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(QUESTIONS[0]) + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        load_choices(str(path), 9)


def test_missing_and_doubled_sets_are_refused(sets, tmp_path):
    with pytest.raises(ConfigError, match=r"retention\.choices"):
        check_retention(RetentionConfig(choices=[str(tmp_path / "none.jsonl")]))
    with pytest.raises(ConfigError, match=r"retention\.texts"):
        check_retention(RetentionConfig(texts=str(tmp_path / "none.txt")))
    with pytest.raises(ConfigError, match="mixed"):
        check_retention(RetentionConfig(choices=[str(sets["questions"])] * 2))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(DataError, match="no raw text"):
        check_retention(RetentionConfig(texts=str(rows)))


@pytest.mark.parametrize(
    ("name", "count", "options"),
    [("mosaic_icl/arc_easy.jsonl", 2376, 4), ("mosaic_icl/copa.jsonl", 100, 2),
     ("mosaic_icl/winogrande.jsonl", 1267, 2),
     ("mosaic_icl/openbook_qa.jsonl", 500, 4), ("mmlu/val", 1542, 4)],
)  # fmt: skip
def test_real_sets(name, count, options):
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not at hand")
    found = load_choices(str(DATA / name), 10_000)
    assert len(found) == count
    assert max(len(choice.options) for choice in found) >= options
    golds = {choice.gold for choice in found}
    assert golds >= set(range(options))


def test_a_weighted_interval_resamples_items_with_their_weights():
    items, weights = [1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 1.0]
    assert bootstrap(items, weights=weights) == pytest.approx(bootstrap(items))
    # The heavy item rules: the interval lies about it, not about the plain mean of 2.
    low, high = bootstrap([1.0, 1.0, 1.0, 5.0] * 20, weights=[1.0, 1.0, 1.0, 97.0] * 20)
    assert 4.7 < low < 0.03 * 1 + 0.97 * 5 < high < 5
