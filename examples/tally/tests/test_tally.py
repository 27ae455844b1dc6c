"""A tally by hand, and the contract of every command."""

import json

from core.testing import command
from core.testing.contracts import CommandContract


class TestTally(CommandContract):
    command = "tally"


def test_a_tally(tmp_path):
    rows = [("before", 0, 0.0), ("before", 1, 1.0), ("before", 2, 1.0), ("after", 0, 1.0), ("after", 1, 0.5),
            ("after", 2, 1.0), ("after", 3, 1.0), ("step", 0, 0.0)]  # fmt: skip
    lines = [json.dumps({"when": when, "index": index, "score": score}) + "\n" for when, index, score in rows]
    (tmp_path / "samples.jsonl").write_text("".join(lines))
    assert command("tally", str(tmp_path)).assert_ok().out == "1 better, 1 worse, 1 equal\n"
