"""A tracker: metrics of steps and evaluations as rows `step,name,value` of a CSV file."""

import csv
from dataclasses import dataclass

from core.api import TrackerConfig, TrackerSpec, hookimpl, require

PREFTUNE_API = 2


@dataclass
class CsvConfig(TrackerConfig):
    """Settings of `tracker=csv`."""

    file: str = "metrics.csv"
    """Name of the file in the run folder."""

    def __post_init__(self):
        require(bool(self.file), "tracker.file", "a file name", self.file)


class Csv:
    def __init__(self, config):
        self.config = config

    @hookimpl
    def on_step_end(self, run, step, metrics):
        with (run.folder / self.config.file).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([step, name, value] for name, value in metrics.items())

    @hookimpl
    def on_eval_end(self, run, step, metrics):
        self.on_step_end(run, step, metrics)


@hookimpl
def register_trackers():
    return [TrackerSpec("csv", CsvConfig, "acme_csvtrack:Csv", "metrics as a CSV file in the run folder")]
