"""Carries out the transforms of a data set, one after another. Torch-free.

A transform sees training records; what is held out stays as it is, but for filters, which also judge held-out records
that were drawn from the same rows as the training records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from core.data.draws import seed_from
from core.data.info import ShownRecord, TransformReport
from core.data.records import BadRow, Record, excerpt
from core.data.transforms import TransformContext, Transformed, text_of
from core.errors import DataError, PluginError, PreftuneError
from core.platform.providers import Providers
from core.platform.registry import Owner, Registry
from core.platform.specs import TransformSpec
from core.settings.data_schema import TransformConfig

EXAMPLES = 3
"""Records of each transform that the plan shows."""


# 1. From config to something that can be called.


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


# 2. One after another.


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
