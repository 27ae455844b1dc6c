"""Two run folders side by side: settings that differ, records that differ, results. Torch-free."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.api import ConfigError, read_rows

USAGE = "diff RUN RUN [--all], each the folder of a run"
ABSENT = "—"
_PLACES = ("runs_dir", "group", "reuse", "dry_run", "version")
"""Settings that change no number."""
_RESULTS = (
    "metric", "before", "after", "interval", "reward_after", "kl_to_reference", "steps", "tokens", "seconds",
    "peak_memory_gb", "verified",
)  # fmt: skip


def command(arguments: list[str]) -> int:
    """Print the comparison; `--all` also shows the results that are equal. Raises ConfigError for what is no run."""
    folders = [Path(argument).expanduser() for argument in arguments if argument != "--all"]
    if len(folders) != 2 or any(argument.startswith("-") for argument in arguments if argument != "--all"):
        raise ConfigError(f"'diff' takes two runs, got {len(folders)}", mend=USAGE)
    everything = "--all" in arguments
    settings = [dict(flat(read(folder, "config.json"))) for folder in folders]
    records = [read(folder, "plan.json").get("data", {}).get("fingerprint") for folder in folders]
    blocks = [
        [("run", *map(str, folders))],
        rows("settings that differ", settings[0], settings[1], skip=_PLACES),
        rows("", {"records": records[0]}, {"records": records[1]}),
        rows("results", results(folders[0]), results(folders[1]), equal=everything),
    ]
    table = [row for block in blocks for row in block]
    widths = [max(len(row[column]) for row in table if len(row) > column) for column in range(2)]
    for name, *values in table:
        line = f"{name:<{widths[0]}}" + "".join(f"  {value:<{widths[1]}}" for value in values)
        sys.stdout.write(f"{line.rstrip()}\n")
    return 0


def read(folder: Path, name: str, needed: bool = True) -> dict[str, Any]:
    """A JSON file of a run; empty where one that is not needed is not there."""
    path = folder / name
    if not path.is_file() and not needed:
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{folder}' is not the folder of a run: {error}", str(path), USAGE) from error
    return value if isinstance(value, dict) else {}


def results(folder: Path) -> dict[str, Any]:
    """Headline, cost, and the last value of each held-out metric; of a run that did not end, what there is."""
    result = read(folder, "result.json", needed=False)
    found: dict[str, Any] = {name: result[name] for name in _RESULTS if result.get(name) is not None}
    last: dict[str, Any] = {}
    for row in read_rows(folder / "metrics.jsonl"):
        last |= {name: value for name, value in row.items() if name.startswith("eval/")}
    return found | last


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested dictionaries; lists stay whole."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def rows(
    title: str, one: dict[str, Any], other: dict[str, Any], skip: tuple[str, ...] = (), equal: bool = False
) -> list[tuple[str, ...]]:
    """A row for each key with both values as texts; equal ones only where asked for."""
    found: list[tuple[str, ...]] = []
    for key in dict.fromkeys([*one, *other]):
        left, right = (text(side[key]) if key in side else ABSENT for side in (one, other))
        if key not in skip and (equal or left != right):
            found.append((f"  {key}", left, right))
    if not title:
        return found
    return [(title,), *found] if found else [(f"{title}: none",)]


def text(value: Any) -> str:
    """A value as it is typed; numbers to five digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
