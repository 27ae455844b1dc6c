"""The race: one process a contender, all alive, one at work. Torch-free."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.rows import rows_file
from benchmarks.tasks import Contender, Task

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


class WorkerError(Exception):
    """A contender's process gave no answer."""


class Worker:
    """A process at the other end of a `Gate`."""

    def __init__(self, log: Path, timeout_s: float) -> None:
        self.log, self.timeout_s = log, timeout_s
        environment = {**ENVIRONMENT, **os.environ, "PYTHONPATH": str(ROOT)}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, cwd=ROOT, env=environment, text=True, bufsize=1,
            )  # fmt: skip

    def send(self, line: str) -> None:
        """A line on its standard input. Raises WorkerError when the process is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(self._last_words()) from error

    def answer(self) -> dict[str, Any]:
        """The next answer. Raises WorkerError when the process died or said nothing for `timeout_s`."""
        stdout: IO[str] | None = self.process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], self.timeout_s)
        if not ready:
            raise WorkerError(f"no answer within {self.timeout_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        return json.loads(line)

    def step(self) -> dict[str, Any]:
        """One step."""
        self.send("step")
        return self.answer()

    def _last_words(self) -> str:
        self.process.wait(timeout=30)
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        named = [line for line in lines if "Error" in line] or lines or ["nothing in its log"]
        return f"exit code {self.process.returncode}: {named[-1].strip()}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@dataclass
class Result:
    """What a contender did in one heat. `steps`: one list of answers a round."""

    contender: Contender
    heat: int = 0
    start: dict[str, Any] = field(default_factory=dict)
    warm_up: dict[str, Any] = field(default_factory=dict)
    steps: list[list[dict[str, Any]]] = field(default_factory=list)
    error: str = ""


def heats(contenders: list[Contender], together: int) -> list[list[Contender]]:
    """Contenders in fields of at most `together`; the first of ours, the reference, runs in each."""
    reference = next((item for item in contenders if item.side == "ours"), None)
    others = [item for item in contenders if item is not reference]
    first = [] if reference is None else [reference]
    size = max(1, together - len(first))
    return [[*first, *others[start : start + size]] for start in range(0, len(others), size)] or [first]


def run_task(
    task: Task,
    only: list[str],
    *,
    model: str | None,
    data: str | None,
    rounds: int,
    steps: int,
    folder: Path,
    together: int = 3,
    timeout_s: float = 1800.0,
) -> tuple[list[Result], dict[str, Any]]:
    """Race the task's contenders (those whose name holds a word of `only`). Returns results, and facts of the race."""
    contenders = [item for item in task.contenders if not only or any(word in item.name for word in only)]
    if not contenders:
        names = ", ".join(item.name for item in task.contenders)
        raise SystemExit(f"error: no contender of '{task.name}' is called so; there are: {names}")
    folder.mkdir(parents=True)
    rows, origin = rows_file(task.name, data, folder)
    job: dict[str, Any] = {
        "task": task.name, "model": model, "rows": str(rows), "steps": 1 + rounds * steps,
        "steps_file": str(folder / "steps.json"),
    }  # fmt: skip
    prepared = _prepare(job, folder, timeout_s)
    facts = {"rows": origin, "examples": prepared["examples"], "model": Path(prepared["folder"]).name}
    results: list[Result] = []
    for heat, field_ in enumerate(heats(contenders, together)):
        part = [Result(contender, heat) for contender in field_]
        _run_heat(part, {**job, "trl_model": prepared["folder"]}, folder / str(heat), rounds, steps, timeout_s)
        results += part
    return results, facts


def _run_heat(
    results: list[Result], job: dict[str, Any], folder: Path, rounds: int, steps: int, timeout_s: float
) -> None:
    """Start the contenders, let each warm up, then give them turns. Fills the results."""
    folder.mkdir()
    workers: list[Worker] = []
    try:
        for number, result in enumerate(results):
            contender = result.contender
            say(f"{job['task']}: starting {contender.name}")
            own = {"side": contender.side, "options": contender.options, "folder": str(folder / str(number))}
            if contender.side == "trl":
                own["model"] = job["trl_model"]
            began = time.perf_counter()
            worker = Worker(folder / f"{number}.log", timeout_s)
            workers.append(worker)
            try:
                worker.send(json.dumps({**job, **own}))
                result.start = {**worker.answer(), "seconds": time.perf_counter() - began}
                result.warm_up = worker.step()
            except WorkerError as error:
                _fail(result, error)
        for number in range(rounds):
            for result, worker in zip(results, workers, strict=True):
                if result.error:
                    continue
                try:
                    result.steps.append([worker.step() for _ in range(steps)])
                except WorkerError as error:
                    _fail(result, error)
                    continue
                seconds = sum(step["seconds"] for step in result.steps[-1])
                say(f"{job['task']}: round {number + 1} of {rounds}, {result.contender.name}: {seconds:.2f} s")
    finally:
        for worker in workers:
            worker.close()


def _prepare(job: dict[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
    """Have the rows of each step written down; where the model's folder is, and how many examples there are."""
    worker = Worker(folder / "rows.log", timeout_s)
    try:
        worker.send(json.dumps({**job, "side": "rows", "folder": str(folder / "rows")}))
        return worker.answer()
    except WorkerError as error:
        raise SystemExit(f"error: the rows could not be prepared: {error} (see {folder / 'rows.log'})") from error
    finally:
        worker.close()


def _fail(result: Result, error: WorkerError) -> None:
    result.error = str(error)
    say(f"{result.contender.name} failed: {error}")


def say(text: str) -> None:
    """A line of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
