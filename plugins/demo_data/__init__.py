"""The embedded demo data: a small choice task, generated with a fixed seed. Torch-free."""

from __future__ import annotations

from core.api import DataSourceSpec, hookimpl


@hookimpl
def register_data_sources() -> list[DataSourceSpec]:
    """The data source `demo`."""
    return [
        DataSourceSpec(
            name="demo",
            impl="plugins.demo_data.words:write",
            version="4",
            summary="pick the word of a category out of three; held-out words never occur in training",
        )
    ]
