"""A command: how many held-out completions of a run became better, and how many worse, by its samples.jsonl."""

import sys
from pathlib import Path

from core.api import CommandSpec, ConfigError, hookimpl, read_rows

PREFTUNE_API = 2


def command(arguments):
    file = Path(*arguments, "samples.jsonl")
    if len(arguments) != 1 or not file.is_file():
        raise ConfigError(f"there are no samples at {str(file)!r}", mend="preftune tally RUN")
    scores = {"before": {}, "after": {}}
    for row in read_rows(file):
        if row["when"] in scores and row["score"] is not None:
            scores[row["when"]][row["index"]] = row["score"]
    gains = [after - scores["before"][index] for index, after in scores["after"].items() if index in scores["before"]]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    sys.stdout.write(f"{better} better, {worse} worse, {len(gains) - better - worse} equal\n")
    return 0


@hookimpl
def register_commands():
    return [CommandSpec("tally", "acme_tally:command", "how many samples of a run became better or worse")]
