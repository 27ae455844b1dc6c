"""Embedded data, generated with a fixed seed: the choice task of the demo, and short word problems. Torch-free."""

from __future__ import annotations

from core.api import DataSourceSpec, hookimpl


@hookimpl
def register_data_sources() -> list[DataSourceSpec]:
    """The data sources `demo`, `word_problems` and `word_problems_worked`."""
    return [
        DataSourceSpec(
            name="demo",
            impl="plugins.demo_data.words:write",
            version="5",
            summary="pick the word of a category out of three; held-out words never occur in training",
        ),
        DataSourceSpec(
            name="word_problems",
            impl="plugins.demo_data.word_problems:write",
            version="1",
            summary="sums and differences of small numbers in a sentence; held-out numbers never stand together in "
            "training",
        ),
        DataSourceSpec(
            name="word_problems_worked",
            impl="plugins.demo_data.word_problems:write_worked",
            version="1",
            summary="the same problems, with the working in the answers",
        ),
    ]
