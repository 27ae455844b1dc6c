"""Where records are: the files of a path for a schema, held-out ones apart. Torch-free."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from core.data.formats import BUILT_IN, Formats
from core.data.readers import data_suffix
from core.data.readers.hub import HubId
from core.data.readers.rows import HELDOUT_NAMES, TRAIN_NAMES
from core.errors import ConfigError, DataError
from core.settings.data_schema import DATA_PATH
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
TAKES = "a file, a folder, or a hub id like owner/name"

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
    path: Path | str, schema: str, formats: Formats = BUILT_IN, key: str = DATA_PATH
) -> tuple[list[Path] | str, list[Path], Path | None]:
    """Training files (or the id of a hub dataset), held-out files, and the folder that both are in.

    path: a file, a folder, a pattern of files, or `owner/name:split` of the hub.
    schema: what the records must serve, see StageSpec.data; in a folder it decides which of sft.jsonl,
        preference.jsonl and so on are taken.
    key: the setting that names the path.
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
            return _matching(place, formats, key)
        raise not_found(place, key, formats)
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
        mend = "add {name}.jsonl, or point {key} at one file"
        raise DataError("{fault}", "{place}", mend, key=key, fault=what, place=place, name=PARTS[schema][0])
    else:
        files = _all_files(place, heldout, formats)
    for part in (files if serving else [], heldout):
        if len(part) > 1:
            what = f"the folder holds the same part more than once: {', '.join(file.name for file in part)}"
            raise DataError(what, str(place), "keep one of these files")
    if not files:
        what, mend = "the folder holds no file of records", "point {key} at a file or folder of {known}"
        raise DataError(what, "{place}", mend, key=key, place=place, known=readers.known)
    if not serving:
        files, apart = _parted(files, place)
        heldout += apart
    return files, heldout, place


def _parted(files: Sequence[Path], folder: Path) -> tuple[list[Path], list[Path]]:
    """Files to train on, and those that are named as test or validation beside a training file: by a folder, or by the
    first or last word of the name."""

    def named(file: Path, names: Sequence[str]) -> bool:
        *folders, name = file.relative_to(folder).parts
        words = re.split(r"[-_. ]", name.partition(".")[0].lower())
        return any(word in names for word in (*(part.lower() for part in folders), words[0], words[-1]))

    apart = [file for file in files if named(file, HELDOUT_NAMES) and not named(file, TRAIN_NAMES)]
    if not any(named(file, TRAIN_NAMES) for file in files):
        apart = []
    return [file for file in files if file not in apart], apart


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


def _matching(pattern: Path, formats: Formats, key: str) -> tuple[list[Path], list[Path], Path]:
    """The data files that a pattern matches, and the folder that holds them all."""
    paths = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 - these may be absolute
    files = [path for path in paths if formats.readers.reads(path)]
    if not files:
        known = formats.readers.known
        what = "no file of records matches '{pattern}'"
        raise ConfigError(what, "{key}", "match files of {known}", key=key, pattern=pattern, known=known)
    return files, [], Path(os.path.commonpath([file.parent for file in files]))


def not_found(path: Path, key: str, formats: Formats = BUILT_IN, takes: str = TAKES) -> ConfigError:
    """The error for a path without anything there, which the setting `key` names: with the nearest name beside it.

    takes: what may stand there.
    """
    folder = path.parent
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    files = [name for name in names if formats.readers.reads(folder / name)]
    if near := nearest(path.name, names):
        mend = "use {typed}={near}"
    elif folder.is_dir():
        mend = "'{folder}' holds {files}"
    else:
        mend = "there is no folder '{folder}' either; give {takes}"
    listed = ", ".join(files[:8]) or "no file of records"
    return ConfigError(
        "'{path}' does not exist", "{key}", mend,
        key=key, path=path, folder=folder, files=listed, near=folder / near, takes=takes,
    )  # fmt: skip
