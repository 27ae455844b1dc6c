"""Set building: filters, de-duplication, augmentation and checks of records, one after another. Torch-free.

A transform sees training records; what is held out stays as it is, but for filters, which also judge held-out records
that were drawn from the same rows as the training records.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from core.data.draws import seed_from
from core.data.info import ShownRecord, TransformReport
from core.data.readers import BUILT_IN_READERS
from core.data.readers.rows import Row
from core.data.records import BadRow, Record, excerpt
from core.errors import ConfigError, DataError, PluginError, PreftuneError
from core.platform.providers import Providers
from core.platform.registry import Owner, Registry
from core.platform.specs import TransformSpec
from core.settings.data_schema import TransformConfig

EXAMPLES = 3
"""Records of each transform that the plan shows."""


class TextPart(str, Enum):
    """Which text of a record a transform looks at."""

    record = "record"
    """Prompt and completion."""
    prompt = "prompt"
    """The prompt's messages but those of the system."""
    completion = "completion"
    """The completion, or both of a pair, or raw text; and tool calls."""


def texts_of(record: Record, part: TextPart = TextPart.record) -> list[str]:
    """Texts of a record: the prompt's messages, the completions (`chosen` and `rejected` of a pair), raw text, and tool
    calls among them. Raw text counts as completion. System messages are left out, because many records share one."""
    prompt = [
        text for message in record.prompt if message.role != "system" for text in (message.content, *message.calls)
    ]
    rest = [text for text in (record.completion, record.chosen, record.rejected, record.text) if text is not None]
    rest += record.calls
    return {TextPart.prompt: prompt, TextPart.completion: rest, TextPart.record: prompt + rest}[part]


def text_of(record: Record, part: TextPart = TextPart.record) -> str:
    """What `texts_of` gives, in one string with a line feed between two texts."""
    return "\n".join(texts_of(record, part))


# Scripts that are written without spaces: each character stands for a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """Words for comparisons: Unicode's compatibility forms (NFKC) and case folded, punctuation left out. In scripts
    without spaces (Thai, Japanese, Chinese, …) each character is a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


# 1. What a transform is given and what it gives.


@dataclass(frozen=True)
class TransformContext:
    """Second argument of a dedup, augment or check."""

    heldout: Sequence[Record]
    """Records that will not be trained on. Look, do not change."""
    seed: int
    """Seed of this transform at its place in the list."""

    def rows(self, path: str) -> Iterator[tuple[str, Row]]:
        """(file, row) of every row of a file or of the files in a folder, whatever their columns.

        Raises: ConfigError when there is nothing to read at `path`; DataError for a damaged file.
        """
        place = Path(path).expanduser()
        files = sorted(file for file in place.rglob("*") if BUILT_IN_READERS.reads(file)) if place.is_dir() else [place]
        if not files or not all(map(BUILT_IN_READERS.reads, files)):
            mend = f"name a file or folder of {BUILT_IN_READERS.known}"
            raise ConfigError(f"there are no rows at '{path}'", "", mend)
        for file in files:
            for row in BUILT_IN_READERS.rows(file):
                yield file.name, row


@dataclass
class Transformed:
    """What a dedup, augment or check gives."""

    records: list[Record]
    """Those that stay, in their order."""
    dropped: list[tuple[Record, str]] = field(default_factory=list)
    """Those that do not, and why. What stands before the first ": " is the kind of reason; kinds are counted."""
    added: list[Record] = field(default_factory=list)
    """New records; `meta` of the one that each came from."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values for plan and report."""
    warnings: list[str] = field(default_factory=list)
    """Lines for the terminal and the report."""


Filter = Callable[[Record], str]
"""Why a record does not stay; empty where it does."""
Transform = Callable[[Sequence[Record], TransformContext], Transformed]


# 2. From config to something that can be called.


@dataclass(frozen=True)
class BoundTransform:
    """A transform ready to be called."""

    spec: TransformSpec
    owner: Owner
    config: TransformConfig
    call: Callable[..., Any]
    """A Filter or a Transform."""


def bind_transforms(
    configs: Sequence[TransformConfig], registry: Registry, providers: Providers
) -> list[BoundTransform]:
    """The configured transforms, imported and built; `providers` counts what they take.

    Raises: PluginError when one cannot be imported; ConfigError for what it refuses.
    """
    bound = []
    for place, config in enumerate(configs):
        entry = registry.transforms[config.name]
        build = registry.resolve(entry.spec)
        with providers.counted(entry.owner):
            call = _guarded(partial(build, config), entry.spec, entry.owner, place)
        bound.append(BoundTransform(entry.spec, entry.owner, config, partial(_counted, providers, entry.owner, call)))
    return bound


# 3. One after another.


@dataclass
class Built:
    """What is left when all transforms are done."""

    train: list[Record]
    drawn: list[Record]
    """Held-out records that were drawn from the training rows."""
    reports: list[TransformReport] = field(default_factory=list)
    """What each transform did, in order."""
    set_aside: list[BadRow] = field(default_factory=list)
    """Training records that a check dropped."""
    warnings: list[str] = field(default_factory=list)


def apply_transforms(
    train: list[Record], drawn: list[Record], brought: Sequence[Record], transforms: Sequence[BoundTransform], seed: int
) -> Built:
    """Call the transforms in their order.

    drawn: held-out records out of the same rows as `train`; brought: held-out records that the user named.
    Raises: DataError when no training record is left; PluginError when a transform fails or breaks its contract.
    """
    built = Built(train, drawn)
    for place, bound in enumerate(transforms):
        before, heldout_before = len(built.train), len(built.drawn)
        if bound.spec.kind == "filter":
            outcome = _filtered(built.train, bound, place)
            built.drawn = _filtered(built.drawn, bound, place).records
        else:
            heldout = [*brought, *built.drawn]
            context = TransformContext(heldout, seed_from(seed, place, bound.spec.name))
            work = partial(bound.call, list(built.train), context)
            outcome = _guarded(work, bound.spec, bound.owner, place)
            _check_contract(built.train, outcome, bound)
            _drop_heldout_prompts(outcome, heldout)
        report = _report(bound, outcome, before, heldout_before - len(built.drawn))
        if not outcome.records:
            first = "; ".join(f"{_place(record)}: {reason}" for record, reason in outcome.dropped[:EXAMPLES])
            what = f"the transform '{bound.spec.name}' leaves no training record"
            raise DataError(what, f"data.transforms[{place}]: {first}", "loosen its settings, or leave it out")
        if bound.spec.kind == "check":
            built.set_aside += [_bad_row(record, reason) for record, reason in outcome.dropped]
        built.train = [*outcome.records, *outcome.added]
        built.reports.append(report)
        built.warnings += [f"{bound.spec.name}: {text}" for text in outcome.warnings]
    return built


def _counted(providers: Providers, owner: Owner, call: Callable[..., Any], *arguments: Any) -> Any:
    with providers.counted(owner):
        return call(*arguments)


def _guarded(work: Callable[[], Any], spec: TransformSpec, owner: Owner, place: int) -> Any:
    """The result of the plugin's code; whatever it raises names the transform and its owner."""
    where = f"data.transforms[{place}] ({spec.name})"
    try:
        return work()
    except PreftuneError as error:
        raise error.within(where) from error
    except Exception as error:
        what = f"the transform '{spec.name}' of {owner} failed: {type(error).__name__}: {error}"
        raise PluginError(what, where, "mend the plugin, or leave the transform out") from error


def _filtered(records: Iterable[Record], bound: BoundTransform, place: int) -> Transformed:
    outcome = Transformed([])

    def judge() -> None:
        for record in records:
            reason = bound.call(record)
            if reason:
                outcome.dropped.append((record, str(reason)))
            else:
                outcome.records.append(record)

    _guarded(judge, bound.spec, bound.owner, place)
    return outcome


def _check_contract(train: Sequence[Record], outcome: Any, bound: BoundTransform) -> None:
    """Raise PluginError where the outcome cannot be true: records lost without a reason, changed or added ones."""
    broken = ""
    if not isinstance(outcome, Transformed):
        broken = f"returned {type(outcome).__name__}, not Transformed"
    elif len(outcome.records) + len(outcome.dropped) != len(train):
        counts = f"{len(outcome.records)} stay and {len(outcome.dropped)} are dropped of {len(train)}"
        broken = f"lost count of the records: {counts}"
    elif bound.spec.kind == "augment" and outcome.dropped:
        broken = "drops records, but its kind is augment"
    elif bound.spec.kind != "augment" and outcome.added:
        broken = f"adds records, but its kind is {bound.spec.kind}"
    else:
        known = {id(record) for record in train}
        if not all(id(record) in known for record in outcome.records):
            broken = "changed records in place of adding or dropping some"
    if broken:
        raise PluginError(f"the transform '{bound.spec.name}' of {bound.owner} {broken}", "", "mend the plugin")


def _drop_heldout_prompts(outcome: Transformed, heldout: Iterable[Record]) -> None:
    """Added records with a prompt of the held-out part are not kept."""
    seen = {record.prompt_key for record in heldout}
    outcome.added = [record for record in outcome.added if record.prompt_key not in seen]


def _place(record: Record) -> str:
    return f"{record.meta.get('file', '')}:{record.meta.get('line', 0)}"


def _bad_row(record: Record, reason: str) -> BadRow:
    meta = record.meta
    return BadRow(str(meta.get("file", "")), int(meta.get("line", 0)), reason, excerpt(text_of(record)))


def _report(bound: BoundTransform, outcome: Transformed, before: int, heldout_dropped: int) -> TransformReport:
    """What the transform did, and to which records."""
    shown = [*outcome.dropped[:EXAMPLES], *((record, "added") for record in outcome.added[:EXAMPLES])]
    return TransformReport(
        name=bound.spec.name,
        kind=bound.spec.kind,
        version=bound.spec.version,
        owner=f"{bound.owner.distribution} {bound.owner.version}".strip() or bound.owner.plugin,
        before=before,
        kept=len(outcome.records),
        dropped=len(outcome.dropped),
        added=len(outcome.added),
        reasons=dict(Counter(reason.partition(": ")[0] for _, reason in outcome.dropped).most_common()),
        examples=[
            ShownRecord(str(record.meta.get("file", "")), record.meta.get("line", 0), reason, excerpt(text_of(record)))
            for record, reason in shown
        ],
        facts=outcome.facts,
        heldout_dropped=heldout_dropped,
    )
