"""What the user types and what comes back: help, commands, mistakes, exit codes, many runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from run_kit import FAKES, ROOT

from core.__main__ import check_installation
from core.builtin import COMMANDS
from core.errors import ConfigError, TrainingError

MISTAKES = [
    (["stage=sft", "stage.lm=0.3"], ["unknown key 'stage.lm'", "Did you mean 'lam'?", "stage.lam=…"]),
    (["stage=sft", "stage.mix.nll_wieght=2"], ["'stage.mix.nll_wieght'", "nll_weight"]),
    (["stage=sft", "stage.lam=high"], ["'stage.lam' must be a float, got 'high'", "0.1", "Weight of the odds ratio."]),
    (["stage=sft", "stage.max_steps=2.5"], ["'stage.max_steps'", "int", "2.5"]),
    (["stage=sft", "stage.schedule=square"], ["one of constant, linear, cosine", "'square'"]),
    (["stage=sft", "quant=nf5"], ["one of none, nf4, int8"]),
    (["stage=sft", "+stage.lamm=0.3"], ["unknown key 'stage.lamm', added with '+'", "'lam'"]),
    (["stage=sft", "++foo=1"], ["unknown key 'foo', added with '+'"]),
    (["stage=sft", "+upstream.foo.lr=1"], ["unknown key 'upstream.foo'", "rlhf, sft"]),
    (["stage=sft", "stage.lr=-1"], ["'stage.lr' must be > 0 and <= 100, got -1.0", "stage.lr=…"]),
    (["stage=sft", "stage.lam=-1"], ["'stage.lam' must be > 0, got -1.0"]),
    (["stage=sft", "stage.mix.nll_weight=-1"], ["'stage.mix.nll_weight' must be >= 0"]),
    (["stage=sft", "model.max_length=0"], ["'model.max_length' must be > 1 and <= 1000000000, got 0"]),
    (["stage=sft", "upstream.sft.lr=-1"], ["'upstream.sft.lr' must be > 0", "set upstream.sft.lr="]),
    (["stage=sft", "upstream.sft.lam=-1"], ["'upstream.sft.lam' must be > 0"]),
    (["stage=sf"], ["there is no stage 'sf'. Did you mean 'sft'?", "rlhf, sft"]),
    (["stage=dpo"], ["algorithm of stage 'rlhf'", "stage=rlhf algorithm=dpo"]),
    (["stage=sft", "experiment=nope"], ["there is no experiment 'nope'", "quick"]),
    (["stage=sft", "peft=lra"], ["there is no peft 'lra'", "'lora'"]),
    (["stage=sft", "tracker=wand"], ["there is no tracker 'wand'", "'wandb'"]),
    (["stage=rlhf", "algorithm=dop"], ["has no algorithm 'dop'", "dpo, ppo"]),
    (["stage=sft", "algorithm=dpo"], ["stage 'sft' has no algorithms", "rlhf"]),
    (["algorithm=dpo"], ["needs a stage", "stage=rlhf"]),
    (["model=embedded"], ["no stage was named", "rlhf, sft"]),
    (["stage=sft", "model=custom"], ["'model.source' must be given", "Hub id"]),
    (["rlhf"], ["'rlhf' is neither a command nor key=value", "stage=rlhf"]),
    (["dpo"], ["stage=rlhf algorithm=dpo"]),
    (["plugin"], ["did you mean plugins?"]),
    (["stage=sft", "lr=1e-5"], ["Did you mean 'stage.lr'?"]),
    (["stage=sft", "stage.name=other"], ["not settings"]),
    (["stage=sft", "data.path=a=b"], ["quote the value", 'data.path="a=b"']),
    (["stage=rlhf", "algorithm=ppo,dpo"], ["add -m"]),
    (["stage=sft", "+stage.lr=1"], ["without '+'"]),
    (["stage=sft", "~stage.lr"], ["stage.lr"]),
    (["stage=sft", "hydra/sweeper=nope"], ["hydra/sweeper", "install the Hydra plugin"]),
    (["stage=sft", "model.source=${nope}"], ["nope"]),
    (["stage=sft", "peft=lora", "peft.options.use_dorra=true"], ["'peft.options.use_dorra'", "use_dora"]),
    (["stage=sft", "peft=lora", "peft.options.task_type=x"], ["filled in by preftune"]),
    (["stage=sft", "peft.method=lra"], ["peft library does not have", "'lora'"]),
    (["stage=sft", "peft.r=8"], ["no effect", "peft=lora"]),
    (["stage=sft", "quant=nf4"], ["cannot be trained", "peft=lora"]),
    (["--cfg", "job", "stage=sft", "peft.rr=3"], ["unknown key 'peft.rr'"]),
    (["-m", "stage=sft", "stage.lm=1,2"], ["unknown key 'stage.lm'"]),
    (["-m", "stage=sft,rlhf", "algorithm=dpo"], ["stage 'sft' has no algorithms"]),
]


@pytest.mark.parametrize(("arguments", "texts"), MISTAKES, ids=lambda value: " ".join(value)[:60])
def test_mistakes_end_with_exit_code_2(acme, cli, executed, arguments, texts):
    outcome = cli(*arguments)
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ") and "Traceback" not in outcome.err
    for text in texts:
        assert text in outcome.err
    assert executed.configs == []


def test_a_run_gets_its_typed_config(acme, cli, executed):
    outcome = cli("stage=rlhf", "algorithm=dpo", "stage.beta=0.5")
    assert outcome.code == 0 and outcome.err == ""
    assert executed.configs[0].stage.beta == 0.5 and executed.plain[0]["stage"]["beta"] == 0.5
    json.dumps(executed.plain[0])


def test_hydra_writes_nothing(acme, cli, tmp_path):
    assert cli("stage=sft", "hydra.verbose=false").code == 0
    assert cli("stage=sft").code == 0
    assert list((tmp_path / "cwd").iterdir()) == []


def test_multirun_runs_each_with_a_registry_of_its_own(acme, cli, executed, tmp_path):
    outcome = cli("-m", "stage=rlhf", "algorithm=ppo,dpo", "stage.lr=1e-5,2e-5")
    assert outcome.code == 0, outcome.err
    seen = [(cfg.stage.algorithm, cfg.stage.lr) for cfg in executed.configs]
    assert seen == [("ppo", 1e-5), ("ppo", 2e-5), ("dpo", 1e-5), ("dpo", 2e-5)]
    assert len({id(registry) for registry in executed.registries}) == 4
    assert [path.name for path in (tmp_path / "cwd").iterdir()] == ["runs"]


def test_multirun_goes_on_after_a_job_that_fails(acme, cli, executed):
    outcome = cli("-m", "stage=sft", "stage.lr=-1,1")
    assert outcome.code == 2 and "'stage.lr' must be > 0" in outcome.err
    assert len(executed.configs) == 1


def test_exit_codes(acme, cli, executed):
    executed.code = 3
    assert cli("stage=sft").code == 3
    executed.error = TrainingError("the loss is nan", "step 3", "lower stage.lr")
    outcome = cli("stage=sft")
    assert outcome.code == 1
    assert outcome.err == "error: the loss is nan\n  where: step 3\n  mend:  lower stage.lr\n"
    executed.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):  # it keeps its traceback, which ends the process with 1
        cli("stage=sft")
    executed.error = KeyboardInterrupt()
    assert cli("stage=sft").code == 130
    executed.error = ConfigError("late")
    assert cli("stage=sft").code == 2


def test_a_broken_neighbour_costs_one_line(acme, cli, make_distribution):
    make_distribution("aaa", "raise RuntimeError('no luck')", distribution="broken", version="7")
    outcome = cli("stage=sft")
    assert outcome.code == 0
    assert outcome.err.count("warning:") == 1 and "broken 7" in outcome.err and "no luck" in outcome.err


def test_help_tells_what_exists(acme, cli):
    for arguments in (["--help"], ["-h"], ["help"]):
        outcome = cli(*arguments)
        assert outcome.code == 0 and outcome.err == ""
        for text in (
            "stage=rlhf algorithm=ppo", "(default)", "arXiv:0000.00000", "stage=sft", "Fine-tunes", "embedded",
            "learned, rules", "instructgpt", "plugins", "dry_run=false", "--multirun", "examples",
        ):  # fmt: skip
            assert text in outcome.out


@pytest.mark.parametrize("spec", COMMANDS, ids=lambda spec: spec.name)
def test_a_command_tells_what_it_takes(cli, spec):
    for flag in ("--help", "-h"):
        outcome = cli(spec.name, flag)
        assert outcome.code == 0 and outcome.out.startswith(f"usage: python -m core {spec.name} {spec.usage}\n")
        assert spec.usage and spec.summary in outcome.out


def test_no_arguments_print_help_and_fail(acme, cli):
    outcome = cli()
    assert outcome.code == 2 and "usage:" in outcome.out


@pytest.mark.parametrize("arguments", [["help", "stage=rlhf", "algorithm=dpo"], ["stage=rlhf", "algorithm=dpo", "-h"]])
def test_help_of_a_stage_prints_its_fields(acme, cli, arguments):
    outcome = cli(*arguments)
    assert outcome.code == 0
    for text in ("stage.beta=0.1", "[float]", "Temperature.", "stage.lr=2e-05", "Peak learning rate.", "preference"):
        assert text in outcome.out


def test_help_of_an_unknown_stage(acme, cli):
    assert "Did you mean 'rlhf'?" in cli("help", "stage=rlfh").err
    assert cli("help", "stage=rlhf", "algorithm=dop").code == 2


def test_version(cli):
    assert cli("--version").out.startswith("preftune ")


def test_plugins(acme, cli, make_distribution):
    make_distribution("aaa", "raise RuntimeError('no luck')", distribution="broken", version="7")
    outcome = cli("plugins")
    assert outcome.code == 0
    for text in ("acme_stages", "stage rlhf/dpo", "register_stages", "broken 7", "no luck"):
        assert text in outcome.out
    rows = {row["plugin"]: row for row in json.loads(cli("plugins", "--json").out)["plugins"]}
    assert rows["aaa"]["state"] == "broken" and rows["acme_stages"]["state"] == "loaded"
    assert cli("plugins", "--jsn").code == 2


def test_cfg_prints_the_composed_configuration(acme, cli, executed):
    outcome = cli("--cfg", "job", "--resolve", "stage=rlhf", "algorithm=dpo")
    assert outcome.code == 0 and "beta: 0.1" in outcome.out and "hydra:" not in outcome.out
    assert "pkg://conf" in cli("--info", "searchpath", "stage=sft").out
    assert executed.configs == []


def test_no_stage_at_all(no_builtins, cli):
    outcome = cli("stage=sft")
    assert outcome.code == 2 and "no stage is installed" in outcome.err


def test_a_package_of_the_same_name_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "conf", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="stands before preftune's own"):
        check_installation()


PROBE = """
import atexit, os, sys
atexit.register(lambda: open(os.environ["PROBE_FILE"], "w").write(" ".join(sorted(sys.modules))))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "absent"),
    [
        (["--help"], 0, ["torch", "hydra", "omegaconf", "transformers", "rich"]),
        (["plugins"], 0, ["torch", "hydra"]),
        (["stage=sft", "stage.lm=1"], 2, ["torch", "transformers", "peft", "rich"]),
        (["stage=sft", "peft=lora", "peft.options.nope=1"], 2, ["torch", "transformers", "peft"]),
        (["stage=sft", "quant=nf4"], 2, ["torch", "bitsandbytes"]),
    ],
)
def test_answers_come_before_anything_heavy_is_imported(acme, tmp_path, arguments, code, absent):
    (tmp_path / "sitecustomize.py").write_text(PROBE)
    paths = os.pathsep.join([str(tmp_path), str(FAKES), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "PROBE_FILE": str(tmp_path / "modules.txt")}
    done = subprocess.run(
        [sys.executable, "-m", "core", *arguments],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    loaded = set((tmp_path / "modules.txt").read_text().split())
    assert "core.errors" in loaded and not loaded & set(absent)
