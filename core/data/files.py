"""Where records are: the files of a path for a schema, held-out ones apart. Torch-free."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from core.data.formats import BUILT_IN, Formats
from core.data.readers import data_suffix
from core.data.readers.hub import HubId
from core.errors import ConfigError, DataError
from core.suggest import nearest

PARTS: dict[str, tuple[str, ...]] = {
    "sft": ("sft", "preference"),
    "preference": ("preference",),
    "prompts": ("prompts", "sft", "preference"),
    "text": ("text",),
    "corpus": ("text", "sft", "preference"),
    "feedback": ("feedback", "sft", "preference"),
}
"""Schema to the files of a folder that can serve it, by name without suffix, best first."""

HELDOUT = "heldout"

NEEDS = {
    "sft": "a prompt and a completion (or a chosen one)",
    "preference": "chosen and rejected completions of one prompt",
    "prompts": "a prompt",
    "text": "raw text",
    "corpus": "raw text, or a prompt and a completion",
    "feedback": "a prompt and a completion, good or bad (or chosen and rejected ones)",
}
"""Schema to what it asks of a record."""


def find_files(
    path: Path | str, schema: str, formats: Formats = BUILT_IN
) -> tuple[list[Path] | str, list[Path], Path | None]:
    """Training files (or the id of a hub dataset), held-out files, and the folder that both are in.

    path: a file, a folder, a pattern of files, or `owner/name:split` of the hub.
    schema: what the records must serve, see StageSpec.data; in a folder it decides which of sft.jsonl,
        preference.jsonl and so on are taken.
    The folder is None where `path` names files themselves.
    Raises: ConfigError when there is nothing at `path`; DataError for a folder without files for the schema.
    """
    place = Path(path)
    readers = formats.readers
    if place.is_file():
        return [place], [], None
    if not place.exists():
        name = place.as_posix()
        if HubId.parse(name) and not place.parent.exists() and data_suffix(place) not in readers.by_suffix:
            return name, [], None
        if glob.has_magic(name):
            return _matching(place, formats)
        raise _not_found(place, formats)
    data = sorted(file for file in place.iterdir() if readers.reads(file))
    stems: dict[str, list[Path]] = {}
    for file in data:
        stems.setdefault(file.name.partition(".")[0], []).append(file)
    heldout = stems.pop(HELDOUT, [])
    named = [part for part in dict.fromkeys(chain(*PARTS.values())) if part in stems]
    serving = [part for part in PARTS[schema] if part in stems]
    if serving:
        files = stems[serving[0]]
    elif named:
        what = f"the folder holds {', '.join(named)}, and none of these serves: the stage needs {NEEDS[schema]}"
        raise DataError(what, str(place), f"add {PARTS[schema][0]}.jsonl, or point data.path at one file")
    else:
        files = _all_files(place, heldout, formats)
    for part in (files if serving else [], heldout):
        if len(part) > 1:
            what = f"the folder holds the same part more than once: {', '.join(file.name for file in part)}"
            raise DataError(what, str(place), "keep one of these files")
    if not files:
        mend = f"point data.path at a file or folder of {readers.known}"
        raise DataError("the folder holds no file of records", str(place), mend)
    return files, heldout, place


def _all_files(folder: Path, heldout: Sequence[Path], formats: Formats) -> list[Path]:
    """Every data file below a folder, in the order of their paths; documents only where there is nothing else. What is
    hidden is left out."""
    found = sorted(
        file
        for file in folder.rglob("*")
        if formats.readers.reads(file) and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    others = [file for file in found if (spec := formats.readers.spec(file)) is not None and not spec.documents]
    return [file for file in others or found if file not in heldout]


def _matching(pattern: Path, formats: Formats) -> tuple[list[Path], list[Path], Path]:
    """The data files that a pattern matches, and the folder that holds them all."""
    paths = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 - these may be absolute
    files = [path for path in paths if formats.readers.reads(path)]
    if not files:
        what = f"no file of records matches '{pattern}'"
        raise ConfigError(what, "data.path", f"match files of {formats.readers.known}")
    return files, [], Path(os.path.commonpath([file.parent for file in files]))


def _not_found(path: Path, formats: Formats) -> ConfigError:
    folder = path.parent
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    if near := nearest(path.name, names):
        mend = f"use data.path={folder / near}"
    elif folder.is_dir():
        files = [name for name in names if formats.readers.reads(folder / name)]
        mend = f"'{folder}' holds {', '.join(files[:8])}" if files else f"'{folder}' holds no file of records"
    else:
        mend = f"there is no folder '{folder}' either; give a file, a folder, or a hub id like owner/name"
    return ConfigError(f"'{path}' does not exist", where="data.path", mend=mend)
