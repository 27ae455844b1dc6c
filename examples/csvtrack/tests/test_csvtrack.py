"""The contract of every tracker, and the losses of the file."""

import csv

from core.testing.contracts import TrackerContract


class TestCsv(TrackerContract):
    tracker = "csv"
    writes = "metrics.csv"

    def test_the_losses_are_those_of_the_run(self, tracked):
        with (tracked.folder / "metrics.csv").open(newline="") as file:
            losses = [float(value) for _, name, value in csv.reader(file) if name == "sft/loss"]
        assert losses == [row["loss"] for row in tracked.steps]
