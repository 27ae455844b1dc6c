"""Whole runs of the command line in this process, on a tiny model: what the fixture `stage_runner` gives."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from core.testing.warm import verify_here, warm_stages

INTERRUPTER = "core.testing.interrupt"
"""An observer that interrupts a run, see `StageRunner.__call__`."""


@dataclass
class Lab:
    """A tiny random model, and a folder of rows that serve every schema: 16 to train on, 4 held out."""

    model: Path
    data: Path

    def words(self, runs: Path) -> list[str]:
        """Settings that every tiny run shares: no network, no tracker, fp32 on one thread."""
        return [
            "model=custom", f"model.source={self.model}", "model.max_length=128", f"data.path={self.data}",
            f"runs_dir={runs}", "tracker=none", "rollout=transformers", "runtime.dtype=fp32", "runtime.device=cpu",
            "runtime.threads=1", "eval.max_new_tokens=4", "eval.max_items=4",
        ]  # fmt: skip


def make_lab(folder: Path) -> Lab:
    """Write model and rows into `folder`."""
    from core.testing.tiny import tiny_model, tiny_pairs

    data = folder / "data"
    data.mkdir(parents=True)
    rows = tiny_pairs(folder / "pairs.jsonl", count=20).read_text().splitlines(keepends=True)
    (data / "preference.jsonl").write_text("".join(rows[:16]))
    (data / "heldout.jsonl").write_text("".join(rows[16:]))
    return Lab(tiny_model(folder / "model"), data)


@dataclass
class Outcome:
    """What a command line did."""

    code: int
    """Exit code."""
    out: str
    err: str
    runs: Path
    stage: str = ""
    folders: list[Path] = field(default_factory=list)
    """Run folders that the command's last stage has under `runs`."""

    def assert_ok(self) -> Outcome:
        """Itself; AssertionError with all that was printed when the command failed."""
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self

    @property
    def folder(self) -> Path:
        """The newest run folder."""
        assert self.folders, f"no run folder was made\n{self.out}\n{self.err}"
        return self.folders[-1]

    @property
    def result(self) -> dict[str, Any]:
        """result.json."""
        return read_json(self.folder / "result.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, evaluations among them."""
        return read_rows(self.folder / "metrics.jsonl")

    @property
    def steps(self) -> list[dict[str, float]]:
        """The metrics of each training step, without the stage's prefix."""
        prefix = f"{self.stage}/"
        rows = [{k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)} for row in self.metrics]
        return [row for row in rows if row]

    @property
    def artifact(self) -> Path:
        """Folder of the trained model."""
        return self.folder / "artifact"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    value = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file; every line must be whole."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    with mock.patch.dict("os.environ", {**values, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}):
        yield


def command(*arguments: str) -> Outcome:
    """Any command line, as it is, in this process."""
    from core.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with _environment(), redirect_stdout(out), redirect_stderr(err):
        code = main(list(arguments))
    return Outcome(code, out.getvalue(), err.getvalue(), Path())


class StageRunner:
    """Runs command lines on the tiny model, each in a folder of its own unless `runs` is given."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self._folder, self._count = lab, folder, 0

    def __call__(self, *words: str, runs: Path | None = None, interrupt_at: int = 0, chain: bool = False) -> Outcome:
        """Run `words`, which name the stage, with the tiny settings before them.

        runs: the runs folder; the same one twice reuses or resumes.
        interrupt_at: end the run, as Ctrl-C would, after the checkpoint of that step.
        chain: let the plan put stages before the named one; else it starts from the tiny model.
        """
        import core.artifacts.artifact

        self._count += 1
        runs = runs or self._folder / f"runs-{self._count}"
        stage = next((word.partition("=")[2] for word in words if word.startswith("stage=")), "")
        alone = [] if chain or not stage or any(w.startswith("pipeline") for w in words) else [stage]
        more = [f"pipeline.stages=[{stage}]"] if alone else []
        import os

        loaded = os.environ.get("PREFTUNE_PLUGINS", "")
        settings = {"PREFTUNE_PLUGINS": f"{loaded},{INTERRUPTER}", "PREFTUNE_TEST_INTERRUPT": str(interrupt_at)}
        with (
            _environment(**(settings if interrupt_at else {})),
            mock.patch.object(core.artifacts.artifact, "verify_in_fresh_process", verify_here),
            warm_stages(),
        ):
            outcome = command(*self.lab.words(runs), *more, *words)
        outcome.runs, outcome.stage = runs, stage
        outcome.folders = sorted((path for path in runs.glob(f"*/*-{stage}*") if path.is_dir()),
                                 key=lambda path: path.stat().st_mtime_ns)  # fmt: skip
        return outcome


VARYING = ("time_s", "tokens_per_s")
"""Endings of the names of metrics that differ between equal runs."""


def fixed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without times."""
    return [{name: value for name, value in row.items() if not name.endswith(VARYING)} for row in rows]


def assert_same_weights(one: Path, other: Path) -> None:
    """The safetensors files of two artifact folders hold the same bits."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names, f"no weights in {one}"
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
