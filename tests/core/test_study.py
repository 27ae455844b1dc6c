"""Studies: arms × seeds as ordinary runs, numbers that are the runs', intervals and verdicts by hand-made values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, Reported
from core.platform.switches import MODULES_VARIABLE
from core.report.comparison import ArmRun, compare, mean_of, quantile, verdict
from core.settings.study_schema import ClaimConfig, Relation, StudyConfig
from core.testing.run import Lab, command, make_lab, read_json, read_rows, verify_here

PRESET = """\
# @package _global_
defaults:
  - override /stage: sft
study:
  title: Two rates
  arms:
    slow: [stage.lr=1e-5]
    fast: [stage.lr=3e-3]
    {more}
  metrics:
    eval/heldout_loss: held-out loss
    sft/target_tokens: tokens of the last step
  claims:
    - {{arm: fast, metric: eval/heldout_loss, relation: lower, than: slow}}
stage: {{max_steps: 3, batch_size: 4, save_every_steps: 1}}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(tmp_path_factory.mktemp("lab"))


class Studies:
    """Studies of a stranger's package, each run in this process instead of one of its own."""

    def __init__(self, lab: Lab, runs: Path) -> None:
        self.lab, self.runs = lab, runs
        self.made: list[list[str]] = []
        self.stop_at = 0

    def apart(self, work: Any, words: list[str]) -> None:
        self.made.append(words)
        if len(self.made) == self.stop_at:
            raise KeyboardInterrupt
        with pytest.raises(SystemExit) as ended:
            work(words)
        if ended.value.code:
            raise Reported(int(ended.value.code))

    def __call__(self, *words: str) -> Any:
        self.made.clear()
        return command("study", "experiment=rates", *self.lab.words(self.runs), *words)

    @property
    def folder(self) -> Path:
        (found,) = (self.runs / "studies").iterdir()
        return found


@pytest.fixture
def studies(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studies:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "rates.yaml").write_text(PRESET.format(more=""))
    (tmp_path / "acme_rates.py").write_text(
        "from core.api import hookimpl\n@hookimpl\ndef register_config_dirs():\n"
        f"    return ['file://{tmp_path / 'conf'}']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "acme_rates", raising=False)
    monkeypatch.setenv(MODULES_VARIABLE, "acme_rates")
    made = Studies(lab, tmp_path / "runs")
    monkeypatch.setattr("core.commands.study.run_apart", made.apart)
    monkeypatch.setattr("core.artifacts.artifact.verify_in_fresh_process", verify_here)
    return made


@pytest.mark.slow
def test_a_study_is_interrupted_goes_on_and_tells_what_its_runs_tell(studies):
    studies.stop_at = 4
    assert studies().code == 130
    assert sum(run["state"] == "done" for run in read_json(studies.folder / "study.json")["runs"]) == 3
    studies.stop_at = 0
    outcome = studies().assert_ok()
    assert len(studies.made) == 3  # the three that were not done
    assert "6 runs: 2 arms × seeds [1, 2, 3]; 3 are done already" in outcome.out and "left for 3 runs" in outcome.out

    study = read_json(studies.folder / "study.json")
    for run in study["runs"]:
        rows = [row for row in read_rows(Path(run["run_dir"]) / "metrics.jsonl") if "eval/heldout_loss" in row]
        assert [run["first"]["eval/heldout_loss"], run["last"]["eval/heldout_loss"]] == [
            rows[0]["eval/heldout_loss"], rows[-1]["eval/heldout_loss"]
        ]  # fmt: skip
        config = read_json(Path(run["run_dir"]) / "config.json")
        assert (config["runtime"]["seed"], config["stage"]["lr"]) == (
            run["seed"],
            {"slow": 1e-5, "fast": 3e-3}[run["arm"]],
        )
    slow, fast = study["metrics"][0]["arms"]
    lasts = {arm: [run["last"]["eval/heldout_loss"] for run in study["runs"] if run["arm"] == arm]
             for arm in ("slow", "fast")}  # fmt: skip
    assert fast["mean"] == pytest.approx(sum(lasts["fast"]) / 3)
    gaps = [f - s for f, s in zip(lasts["fast"], lasts["slow"], strict=True)]
    assert fast["difference"]["mean"] == pytest.approx(sum(gaps) / 3) == study["claims"][0]["mean"]
    assert slow["difference"] is None and study["claims"][0]["verdict"] == "seen"

    page, text = (studies.folder / name for name in ("study.html", "study.md"))
    assert page.read_text().count("<svg") == 2 and page.read_text().count('class="seed"') == 12
    assert "src=" not in page.read_text() and "http" not in page.read_text().replace("http-equiv", "")
    assert "| held-out loss | fast | 3 |" in text.read_text()
    assert studies().code == 0 and studies.made == []  # nothing is left to do


@pytest.mark.slow
def test_a_failing_arm_is_told_and_the_rest_goes_on(studies, tmp_path):
    preset = tmp_path / "conf" / "experiment" / "rates.yaml"
    preset.write_text(PRESET.format(more="broken: [stage.lr=100, stage.weight_decay=100, stage.max_steps=16]"))
    outcome = studies("study.seeds=[1,2]")
    assert outcome.code == 1 and len(studies.made) == 6
    assert "arm broken, seed 1 failed; the study goes on" in outcome.out
    states = {(run["arm"], run["state"]) for run in read_json(studies.folder / "study.json")["runs"]}
    assert states == {("slow", "done"), ("fast", "done"), ("broken", "failed")}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("runtime.seed=3",), "'runtime.seed' is set by the study"),
        (("experiment=quick",), "names no arms"),
        (("study.files={a.json: 'https://example.org/a'}",), "fetch a.json from https://example.org/a"),
        (("study.claims=[{arm: x, metric: eval/heldout_loss}]",), "study.claims[0].arm"),
        (("study.arms={odd: ['stage.lrr=1']}",), "arm odd, seed 1"),
        (("--multirun",), "does not take '--multirun'"),
    ],
)
def test_what_cannot_be_compared_is_refused(studies, words, told):
    outcome = command("study", *words) if words[0].startswith("experiment=") else studies(*words)
    assert outcome.code == 2 and told in outcome.err, outcome.err
    assert studies.made == []


def test_studies_are_listed(studies):
    listed = command("study")
    assert listed.code == 0 and "rates" in listed.out and "Two rates" in listed.out and "quick" not in listed.out


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_intervals_are_students():
    found = mean_of([1.0, 2.0, 3.0])
    half = 4.303 / math.sqrt(3)
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert (mean_of([5.0]).mean, mean_of([5.0]).low, mean_of([]).mean) == (5.0, None, None)
    assert quantile(11) == pytest.approx(2.201, abs=2e-3) and quantile(30) == pytest.approx(2.042, abs=1e-3)


@pytest.mark.parametrize(
    ("relation", "margin", "differences", "wanted"),
    [
        ("higher", 0.0, [0.30, 0.31, 0.32], "seen"),
        ("higher", 0.0, [-0.30, -0.31, -0.32], "contradicted"),
        ("higher", 0.0, [0.3, -0.3, 0.1], "open"),
        ("higher", 0.5, [0.30, 0.31, 0.32], "contradicted"),
        ("lower", 0.0, [-0.30, -0.31, -0.32], "seen"),
        ("no_lower", 0.0, [0.0, 0.0, 0.0], "seen"),
        ("no_lower", 0.1, [-0.05, -0.06, -0.05], "seen"),
        ("no_lower", 0.0, [-0.05, -0.06, -0.05], "contradicted"),
        ("no_higher", 0.1, [0.05, 0.06, 0.05], "seen"),
        ("no_higher", 0.1, [0.3, 0.0, 0.1], "open"),
        ("higher", 0.0, [0.3], "not measured"),
    ],
)
def test_verdicts(relation, margin, differences, wanted):
    claim = ClaimConfig("a", "m", Relation(relation), "b", margin=margin)
    assert verdict(claim, mean_of(differences)) == wanted


def test_differences_are_paired_by_seed_and_left_out_where_a_run_failed():
    study = StudyConfig(
        arms={"a": [], "b": []}, metrics={"eval/x": "x", "data/y": "y"},
        claims=[ClaimConfig("b", "eval/x", Relation.higher, "a"),
                ClaimConfig("b", "eval/x", Relation.higher, than_metric="data/y")],
    )  # fmt: skip
    values = {("a", 1): 0.0, ("a", 2): 10.0, ("b", 1): 1.0, ("b", 2): 11.5, ("b", 3): 99.0}
    runs = [ArmRun(arm, seed, first={"eval/x": -1.0}, last={"eval/x": value, "data/y": value - 2})
            for (arm, seed), value in values.items()]  # fmt: skip
    found = compare(study, runs)
    assert found["metrics"][0]["arms"][1]["difference"]["mean"] == 1.25
    assert [(claim["n"], claim["mean"]) for claim in found["claims"]] == [(2, 1.25), (3, 2.0)]
    assert (found["metrics"][0]["start"], found["metrics"][1]["start"]) == (-1.0, None)
    assert json.dumps(found)


def test_a_claim_names_what_the_study_has():
    with pytest.raises(ConfigError, match="than_metric"):
        StudyConfig(arms={"a": []}, metrics={"m": "m"}, claims=[ClaimConfig("a", "m", than_metric="n")])
