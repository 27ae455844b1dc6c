"""The heavy side of acme_stages, as light as can be."""

from __future__ import annotations

import core.torch_api
from core.api import hookimpl


class Stage(core.torch_api.Stage):
    """Answers one stage hook."""

    def total_steps(self, data):
        return 3


class Tracker:
    """Keeps its config."""

    def __init__(self, config):
        self.config = config

    @hookimpl
    def on_run_end(self, run, result):
        return None


class Misspelt(Stage):
    """Has a method that was meant to be a hook."""

    def compute_los(self, models, micro_batch):
        return None


def build(config, context):
    return config
