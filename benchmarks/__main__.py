"""`python -m benchmarks [sft|dpo|rloo|build|prepare|help|all]`: see README.md beside this file."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.build_speed import build_table, run_build
from benchmarks.help_speed import help_table, run_help
from benchmarks.prepare import run_prepare
from benchmarks.prepare import table as prepare_table
from benchmarks.race import run_task
from benchmarks.report import environment, environment_line, summarise, table
from benchmarks.rows import instructions
from benchmarks.tasks import TASKS


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Race, print a table for each benchmark, write the JSON. Returns what the JSON holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = [*TASKS, "build", "prepare", "help", "all"]
    parser.add_argument("benchmark", nargs="?", default="all", choices=choices)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each contender, warm-up apart (6)")
    parser.add_argument("--steps", type=int, default=1, help="steps in one turn (1)")
    parser.add_argument("--only", action="append", default=[], help="contenders whose name holds this; repeatable")
    parser.add_argument("--together", type=int, default=3, help="contenders alive at once, 2 or more (3)")
    parser.add_argument("--model", help="folder or package:…, the embedded model when unset; `tiny` is a random one")
    parser.add_argument("--data", help="file of rows, or folder of them; $PREFTUNE_BENCH_DATA, else generated rows")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    parser.add_argument("--keep", action="store_true", help="keep the working folder with the contenders' logs")
    parser.add_argument("--count", type=int, default=4000, help="rows of `prepare` (4000)")
    parser.add_argument("--llamafactory", metavar="PYTHON", help="prepare: a Python that can import LLaMA-Factory")
    asked = parser.parse_args(arguments)
    if min(asked.rounds, asked.steps) < 1 or asked.together < 2:
        parser.error("--rounds and --steps must be at least 1, --together at least 2")
    if asked.model == "tiny" and asked.benchmark == "build":
        parser.error("build needs longer prompts than the random model takes")
    folder = Path(tempfile.mkdtemp(prefix="preftune-bench-"))
    model = _tiny(folder / "tiny") if asked.model == "tiny" else asked.model
    builds = [] if asked.model == "tiny" else ["build"]
    names = [*TASKS, *builds, "prepare", "help"] if asked.benchmark == "all" else [asked.benchmark]
    measured: dict[str, Any] = {"environment": environment(), "benchmarks": {}}
    print(environment_line(measured["environment"]))
    failed = False
    for name in names:
        if name == "help":
            rows = run_help(asked.rounds)
            measured["benchmarks"][name] = {"commands": rows}
            print(f"\n## help\n\n{help_table(rows)}", flush=True)
            continue
        if name == "prepare":
            source = model if model else _embedded()
            rows, about = instructions(asked.data, asked.count)
            entries = run_prepare(rows, source, asked.rounds, folder / name, asked.llamafactory)
            measured["benchmarks"][name] = {"contenders": entries}
            print(f"\n## prepare\n\n{about}\n\n{prepare_table(entries)}", flush=True)
            _write(asked.json, measured)
            continue
        if name == "build":
            rows = run_build(asked.rounds, model, asked.only, folder / name)
            measured["benchmarks"][name] = {"contenders": rows}
            print(f"\n## build\n\n{build_table(rows)}", flush=True)
            _write(asked.json, measured)
            continue
        task = TASKS[name]
        results, facts = run_task(
            task, asked.only, model=model, data=asked.data, rounds=asked.rounds, steps=asked.steps,
            folder=folder / name, together=asked.together,
        )  # fmt: skip
        summary = summarise(results)
        failed = failed or any(result.error for result in results)
        measured["benchmarks"][name] = {**facts, "about": task.about, "contenders": summary}
        print(f"\n## {name}\n\n{task.about}; {facts['model']}; {facts['rows']}\n\n{table(summary)}", flush=True)
        _write(asked.json, measured)
    _write(asked.json, measured)
    if asked.keep or failed:
        print(f"\nlogs: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return measured


def _write(path: Path | None, measured: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def _embedded() -> str:
    """Folder of the embedded model, converted once."""
    from core.config.typed import typed_config
    from core.planning.sources import resolve_source

    return str(resolve_source(typed_config(["stage=sft"])[0].model))


def _tiny(folder: Path) -> str:
    """A random model, to try the harness; its speeds mean nothing."""
    from core.testing.tiny import tiny_model

    return str(tiny_model(folder, hidden=128))  # vLLM serves heads of 32 and wider


if __name__ == "__main__":
    main()
