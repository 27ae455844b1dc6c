"""Datasets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from core.data.readers.rows import Row, plain, without_nulls
from core.errors import DataError
from core.settings.data_schema import DATA_PATH

_ID = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?"
    r"(:(?P<parts>[^:\[\]]+(:[^:\[\]]+)?)(\[:(?P<first>[1-9]\d*)\])?)?"
)


class HubId(NamedTuple):
    """`owner/name[@revision][[:config]:split[[:first]]]`, e.g. `owner/name`, `owner/name:test`,
    `owner/name@v1:main:train[:500]`."""

    name: str
    revision: str | None
    config: str | None
    split: str
    first: int | None
    """Rows to stream, instead of downloading the whole split."""

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """The parts of an id; None for a text that is none."""
        match = _ID.fullmatch(text)
        if match is None:
            return None
        *config, split = (match["parts"] or "train").split(":")
        return cls(
            match["name"],
            match["revision"],
            config[0] if config else None,
            split,
            int(match["first"]) if match["first"] else None,
        )


def read_hub(text: str) -> Iterator[Row]:
    """Rows of a dataset on the hub, numbered from 1.

    text: an id as HubId has it; the split is `train` where none is named. A whole split is downloaded once into the
        cache of `datasets`; of `split[:500]` only what holds the first 500 rows is fetched.
    Raises: DataError when it cannot be loaded, e.g. offline. Code that a dataset brings is never run: `datasets`
        refuses such datasets from version 4 on.
    """
    import datasets

    wanted = HubId.parse(text)
    if wanted is None:
        raise DataError("'{text}' is no id of a dataset", "{key}", "write owner/name:split", key=DATA_PATH, text=text)
    number = 0
    try:
        rows = datasets.load_dataset(
            wanted.name, wanted.config, split=wanted.split, revision=wanted.revision,
            streaming=wanted.first is not None,
        )  # fmt: skip
        for number, value in enumerate(islice(rows, wanted.first), start=1):
            yield Row(number, {name: without_nulls(plain(cell)) for name, cell in value.items()})
    except Exception as error:  # whatever the hub, the network or the dataset's files raise
        reason = str(error).strip().partition("\n")[0]
        after = f" after row {number}" if number else ""
        mend = "check the name and the network, or download the files and set {key} to their folder"
        raise DataError(
            "cannot load '{text}' from the hub{after}: {reason}", "{key}", mend,
            key=DATA_PATH, text=text, after=after, reason=reason,
        ) from error  # fmt: skip
