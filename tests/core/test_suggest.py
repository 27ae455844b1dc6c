"""What is proposed for a word that is not known: the nearest name, never what was typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core.config.typed import typed_config
from core.errors import ConfigError
from core.planning.make import make_plan
from core.suggest import did_you_mean, mend_of, nearest, question

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("lm", ["lr", "lam"], "lam"),
        ("LR", ["lam", "lr"], "lr"),
        ("max-steps", ["max_steps", "steps"], "max_steps"),
        ("readme.md", ["README.md", "reader.md"], "README.md"),
        ("tracker", ["tracker", "trackers"], "trackers"),
        ("tracker", ["tracker"], ""),
        ("tracker", ["stage", "model"], ""),
        ("", ["stage"], ""),
        ("a", [], ""),
    ],
)
def test_the_nearest_is_never_the_word_itself(word, known, meant):
    assert nearest(word, known) == meant
    assert did_you_mean(word, known) == (f". Did you mean '{meant}'?" if meant else "")
    assert mend_of(word, known, "known") == (f"did you mean '{meant}'? " if meant else "") + (
        f"known: {', '.join(sorted(known))}"
    )


def test_a_question_names_all_that_may_be_meant():
    assert question(["data.seed", "runtime.seed"]) == ". Did you mean 'data.seed' or 'runtime.seed'?"
    assert question([]) == ""


def test_proposals_are_made_at_one_place():
    files = [file for top in ("core", "plugins", "reward_models") for file in sorted((ROOT / top).rglob("*.py"))]
    texts = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}
    assert [name for name, text in texts.items() if "difflib" in text] == ["core/suggest.py"]
    assert [name for name, text in texts.items() if re.search("did you mean '", text, re.IGNORECASE)] == [
        "core/suggest.py"
    ]


MEANT = [
    (["stage=sft", "tracker.tracker=x"], "'tracker.tracker'. Did you mean 'tracker'?", "write tracker=…"),
    (["stage=sft", "+tracker.tracker=x"], "added with '+'. Did you mean 'tracker'?", "write tracker=…"),
    (["stage=sft", "tracker={tracker: x}"], "'tracker.tracker'. Did you mean 'tracker'?", "write tracker=…"),
    (["stage=sft", "+stage.tracker=x"], "Did you mean 'tracker'?", "write tracker=…"),
    (["stage=sft", "stage.model=x"], "Did you mean 'model'?", "write model=…"),
    (["stage=sft", "Tracker=none"], "unknown key 'Tracker'. Did you mean 'tracker'?", "write tracker=…"),
    (["stage=sft", "stage.LR=1"], "unknown key 'stage.LR'. Did you mean 'lr'?", "write stage.lr=…"),
    (["stage=sft", "stage.max-steps=1"], "Did you mean 'max_steps'?", "write stage.max_steps=…"),
    (["stage=sft", "model.lr=1"], "Did you mean 'stage.lr'?", "write stage.lr=…"),
    (["stage=sft", "nll_weight=1"], "Did you mean 'stage.mix.nll_weight'?", "write stage.mix.nll_weight=…"),
    (["stage=sft", "stage.nll_weight=1"], "Did you mean 'stage.mix.nll_weight'?", "write stage.mix.nll_weight=…"),
    (["stage=sft", "mix.nll_weight=1"], "unknown key 'mix'. Did you mean 'stage.mix'?", "write stage.mix.KEY=…"),
    (["stage=sft", "stage.eval.samples=1"], "Did you mean 'eval'?", "write eval.KEY=…"),
    (["stage=rlhf", "algorithm=dpo", "beta=1"], "Did you mean 'stage.beta'?", "write stage.beta=…"),
    (["stage=sft", "seed=1"], "Did you mean 'data.seed' or 'runtime.seed'?", "data.seed=… or runtime.seed=…"),
    (["stage=sft", "stages=[sft]"], "Did you mean 'stage' or 'pipeline.stages'?", "stage=… or pipeline.stages=…"),
    (["stage=sft", "tracker.algorithm=x"], "Did you mean 'algorithm'?", "write algorithm=…"),
    (["stage=sft", "data.mixture.path=x"], "Did you mean 'data.path'?", "write data.path=…"),
    (["stage=sft", "data.mixture.cap=3"], "unknown key 'data.mixture.cap'\n", "data.mixture.NAME.cap=…"),
    (["stage=sft", "upstream.sftt.lr=1"], "unknown key 'upstream.sftt'. Did you mean 'sft'?", "rlhf, sft"),
    (["stage=sft", "+upstream.sftt.lr=1"], "'upstream.sftt', added with '+'. Did you mean 'sft'?", "rlhf, sft"),
    (["stage=sft", "upstream.lr=1"], "unknown key 'upstream.lr'\n", "the names of stages: rlhf, sft"),
    (["stage=sft", "upstream=sft"], "'upstream' must hold settings by stage, got 'sft'", "upstream.STAGE.KEY=…"),
    (["stage=rlhf", "algorithm.beta=1"], "'algorithm' has no settings of its own", "algorithm=NAME"),
    (["stage=rlhf", "+algorithm=dpo"], "'algorithm' has no settings of its own", "without '+'"),
    (["stage=sft", "experiment.x=1"], "'experiment' has no settings of its own", "experiment=NAME"),
    (["stage=sft", "+tracker=none"], "there is a choice of 'tracker' already", "write tracker=NAME, without '+'"),
    (["stage=sft", "++tracker=none"], "there is a choice of 'tracker' already", "write tracker=NAME, without '+'"),
    (["stage=sft", "+stage=sft"], "there is a choice of 'stage' already", "write stage=NAME, without '+'"),
    (["stage=sft", "~stage.lrr"], "'stage.lrr' is to be deleted, but is not there", "correct the key"),
    (["stage=SFT"], "there is no stage 'SFT'. Did you mean 'sft'?", "rlhf, sft"),
    (["stage=rlhf", "algorithm=DPO"], "has no algorithm 'DPO'. Did you mean 'dpo'?", "dpo, ppo"),
    (["SFT"], "neither a command nor key=value", "did you mean stage=sft?"),
    (["DPO"], "neither a command nor key=value", "did you mean stage=rlhf algorithm=dpo?"),
]


@pytest.mark.parametrize(("arguments", "said", "mend"), MEANT, ids=lambda value: " ".join(value)[:50])
def test_what_is_proposed_for_a_command_line(acme, cli, executed, arguments, said, mend):
    outcome = cli(*arguments)
    assert outcome.code == 2, outcome.err
    assert said in outcome.err and mend in outcome.err.partition("mend:")[2]
    assert executed.configs == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pipeline.stages=[sf,sft]", "there is no stage 'sf'. Did you mean 'sft'?"),
        ("data.source=Demo", "there is no data source 'Demo'. Did you mean 'demo'?"),
    ],
)
def test_what_the_plan_proposes(acme, word, said):
    cfg, registry, _ = typed_config(["stage=sft", word])
    with pytest.raises(ConfigError) as caught:
        make_plan(cfg, registry)
    assert caught.value.what == said and caught.value.mend.startswith("choose one of: ")


NONSENSE = [
    ["stage=sft", "eval.eval=1"],
    ["stage=sft", "stage.stag=1"],
    ["stage=sft", "name=x"],
    ["stage=sft", "tracker.nam=x"],
    ["stage=sft", "upstream.sft.stage.lr=1"],
    ["stage=sft", "upstream.sft.sft=1"],
]


@pytest.mark.parametrize("arguments", NONSENSE, ids=" ".join)
def test_what_could_not_be_typed_is_not_proposed(acme, cli, executed, arguments):
    outcome = cli(*arguments)
    assert outcome.code == 2 and "Did you mean" not in outcome.err and "mend:" in outcome.err
