"""The numbers in the report are those of samples.jsonl; and the contract of every observer."""

import json

from core.testing.contracts import ObserverContract


class TestLengths(ObserverContract):
    plugin = "lengths"
    section = "Completion lengths"

    def test_the_report_has_the_lengths_of_the_samples(self, watched):
        rows = [json.loads(line) for line in (watched.folder / "samples.jsonl").read_text().splitlines()]
        before = [len(row["completion"]) for row in rows if row["when"] == "before"]
        report = (watched.folder / "report.md").read_text()
        assert f"| before | {sum(before) / len(before):.0f} | {max(before)} |" in report
