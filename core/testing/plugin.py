"""The pytest plugin that an installation of preftune announces: fixtures for tests of plugins. Torch-free."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from core.testing.run import Lab, StageRunner, make_lab

# Threads that spin at barriers starve each other on a shared machine; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
pytest.register_assert_rewrite("core.testing.contracts")


@pytest.fixture(scope="session")
def preftune_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A tiny random model and rows for it, made once."""
    lab = make_lab(tmp_path_factory.mktemp("preftune_lab"))
    gc.collect()
    gc.freeze()  # accelerate collects at the end of every run, which would go through the objects of all libraries
    yield lab
    gc.unfreeze()


@pytest.fixture(scope="class")
def stage_runner(preftune_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> StageRunner:
    """Runs a command line on the tiny model: `stage_runner("stage=sft", "stage.max_steps=2").assert_ok()`."""
    return StageRunner(preftune_lab, tmp_path_factory.mktemp("runs"))
