"""What every plugin must keep, whatever it brings."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from core.platform.registry import Registry
from core.platform.switches import ALLOW_VARIABLE, DISABLE_VARIABLE, MODULES_VARIABLE
from core.settings.fields import field_docs
from core.testing.run import Outcome, StageRunner, assert_same_weights, command, fixed

_SEEN_IN = ("PYTHONPATH", MODULES_VARIABLE, ALLOW_VARIABLE, DISABLE_VARIABLE)

_LOADS = """
import sys
from core.platform.registry import Registry
registry = Registry.load()
assert not registry.warnings, registry.warnings
assert 'torch' not in sys.modules, 'torch was imported by an entry module'
"""


@functools.cache
def loading_fails(folder: str, seen_in: tuple[tuple[str, str], ...]) -> str:
    """What a fresh process says that cannot load the entry modules without torch, "" when it can.

    folder, seen_in: the working folder and the variables that decide what plugins there are.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LOADS], cwd=folder, env={**os.environ, **dict(seen_in)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stderr if done.returncode else ""


def rollout_stage() -> list[str]:
    """Words that choose the stage with rollouts that needs the fewest models."""
    specs = [entry.spec for entry in Registry.load().stages.values() if entry.spec.rollouts]
    assert specs, "no stage with rollouts is installed"
    spec = min(specs, key=lambda spec: (len(spec.roles), spec.name, spec.algorithm))
    return [f"stage={spec.name}", *([f"algorithm={spec.algorithm}"] if spec.algorithm else [])]


class Contract:
    """What holds for every kind."""

    words: ClassVar[tuple[str, ...]] = ()
    """Further words of the command line that every run needs."""

    def entry(self) -> Any:
        """The registered spec and its owner. AssertionError where nobody brings it."""
        raise NotImplementedError

    def test_it_is_found(self) -> None:
        """An entry point (or PREFTUNE_PLUGINS) brings it, whole, and its config can be used."""
        owner = self.entry().owner
        registry = Registry.load()
        registry.check_configs()
        record = next(record for record in registry.plugins if record.owner == owner)
        assert record.state == "loaded", record.reason
        assert self.entry().spec.summary, "say in `summary` what it is"

    def test_the_entry_module_is_torch_free(self) -> None:
        """In a fresh process, as at every start; one for all classes that see the same plugins."""
        seen_in = [(name, value) for name, value in os.environ.items() if name in _SEEN_IN]
        assert not loading_fails(str(Path.cwd()), tuple(sorted(seen_in)))


class ConfiguredContract(Contract):
    """What holds for every kind that has settings."""

    def chosen(self) -> list[str]:
        """Words of the command line that choose it."""
        raise NotImplementedError

    def prefix(self) -> str:
        """The part of the configuration that its fields stand under."""
        raise NotImplementedError

    def test_every_setting_has_a_docstring(self) -> None:
        """`help` shows them."""
        for doc in field_docs(self.entry().spec.config):
            assert doc.doc, f"{doc.name} has no docstring under it"

    def typos(self) -> list[str]:
        """Words that set what it has not, also with the `+` that would lead around the schema."""
        return [f"{mark}{self.prefix()}.no_such_setting=1" for mark in ("", "+", "++")]

    def test_a_typo_is_refused(self) -> None:
        """Exit code 2 before anything runs."""
        for typo in self.typos():
            outcome = command(*self.chosen(), *self.words, typo, "dry_run=true")
            assert outcome.code == 2, outcome.err
            assert "no_such_setting" in outcome.err and "Traceback" not in outcome.err


class TrainingContract(ConfiguredContract):
    """What holds for everything that takes part in training: two short runs, one of them interrupted."""

    lr: ClassVar[float] = 1e-2
    """Large enough for a random model to learn 16 rows in a few steps."""
    loss: ClassVar[str] = "loss"
    """Metric that must fall on a repeated batch; empty where none does (objectives with rollouts)."""

    def trained(self) -> list[str]:
        """Six steps of the whole data, a checkpoint at each second one."""
        return [
            *self.chosen(), "stage.batch_size=16", "stage.max_steps=6", "stage.save_every_steps=2",
            f"stage.lr={self.lr}", "stage.warmup_frac=0", "stage.schedule=constant", *self.words,
        ]  # fmt: skip

    @pytest.fixture(scope="class")
    @classmethod
    def straight(cls, stage_runner: StageRunner) -> Outcome:
        """A run that was left alone."""
        return stage_runner(*cls().trained()).assert_ok()

    @pytest.fixture(scope="class")
    @classmethod
    def interrupted(cls, stage_runner: StageRunner) -> Outcome:
        """The same run, interrupted after its fourth step and started again."""
        kit = cls()
        first = stage_runner(*kit.trained(), interrupt_at=4)
        assert first.code == 130, first.err
        again = stage_runner(*kit.trained(), runs=first.runs).assert_ok()
        assert again.folder == first.folder, "the interrupted run was not resumed"
        return again

    def test_the_loss_falls_on_a_repeated_batch(self, straight: Outcome) -> None:
        """Every step sees all rows, so the last must be better than the first."""
        if not self.loss:
            pytest.skip("no metric falls steadily")
        first, last = straight.steps[0][self.loss], straight.steps[-1][self.loss]
        assert last < first, f"{self.loss} went from {first} to {last}"

    def test_the_same_seed_gives_the_same_numbers(self, straight: Outcome, interrupted: Outcome) -> None:
        """Two runs of one command, up to the interruption."""
        assert fixed(straight.steps)[:4] == fixed(interrupted.steps)[:4]

    def test_a_resumed_run_equals_a_straight_one(self, straight: Outcome, interrupted: Outcome) -> None:
        """Same metrics, same bits."""
        assert interrupted.result["resumed_at"] == [4]
        assert fixed(straight.metrics) == fixed(interrupted.metrics)
        assert_same_weights(straight.artifact, interrupted.artifact)
