"""How many records each source gives to a mixture, and the mixture itself. Torch-free.

Examples-proportional mixing with a maximum rate and temperature mixing: Raffel et al. 2020, arXiv:1910.10683, section
3.5.2; the maximum rate of 3000: Wei et al. 2022 (FLAN), arXiv:2109.01652.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from core.data.draws import shuffled
from core.data.info import PartInfo, SourceInfo
from core.data.records import Record
from core.errors import DataError, PluginError
from core.settings.data_schema import DataConfig, Mixing


def weights(sizes: Mapping[str, int], cfg: DataConfig) -> dict[str, float]:
    """Share of each source in the mixture; they add up to 1.

    sizes: training records of each source, those over its cap left out.
    """
    bound = cfg.mix_rate_max or math.inf
    if cfg.mixing is Mixing.fixed:
        raw = {name: cfg.mixture[name].rate or 0.0 for name in sizes}
    elif cfg.mixing is Mixing.temperature:
        raw = {name: min(size, bound) ** (1 / cfg.mix_temperature) for name, size in sizes.items()}
    else:
        raw = {name: float(min(size, bound)) for name, size in sizes.items()}
    total = sum(raw.values())
    return {name: weight / total for name, weight in raw.items()}


def size_without_repeats(sizes: Mapping[str, int], shares: Mapping[str, float]) -> int:
    """The most records that a mixture can have before a source must give one twice."""
    return math.floor(min(size / shares[name] for name, size in sizes.items()) * (1 + 1e-12))


def quotas(shares: Mapping[str, float], size: int) -> dict[str, int]:
    """`size` records shared out by the weights: each source gets its share rounded down, and what is left over goes to
    the largest remainders."""
    exact = {name: share * size for name, share in shares.items()}
    found = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (found[name] - exact[name], name))
    for name in by_remainder[: size - sum(found.values())]:
        found[name] += 1
    return found


def capped(records: Sequence[Record], cap: int | None, seed: int) -> list[Record]:
    """At most `cap` of the records, drawn by the seed, in the order in which they came."""
    if cap is None or len(records) <= cap:
        return list(records)
    kept = {id(record) for record in shuffled(records, seed)[:cap]}
    return [record for record in records if id(record) in kept]


def mix(sources: Mapping[str, Sequence[Record]], drawn: Mapping[str, int], seed: int) -> list[Record]:
    """The mixture in an order drawn by the seed.

    drawn: records to take of each source. One that must give more than it has gives all of them, again and again, and
    of the last round those that come first in its own order.
    """
    mixed: list[Record] = []
    for name, records in sources.items():
        order = shuffled(records, seed)
        rounds, rest = divmod(drawn[name], len(order)) if order else (0, 0)
        mixed += order * rounds + order[:rest]
    random.Random(f"{seed}:mixture").shuffle(mixed)
    return mixed


def mixed(
    cfg: DataConfig, train: Sequence[Record], heldout: Sequence[Record], seed: int, known: Mapping[str, PartInfo]
) -> tuple[list[Record], dict[str, SourceInfo]]:
    """The mixture of `cfg.mixture` out of all sources' training records, and what the plan says of each source.

    known: what the plan knew of each source when it was loaded.
    `source` in a record's meta names its source. Raises: DataError for a source without records; PluginError for a
    record of no source.
    """
    by_source: dict[str, list[Record]] = {name: [] for name in cfg.mixture}
    for record in train:
        if record.meta.get("source") not in by_source:
            what = "a transform added a record without the `source` of the record that it came from"
            raise PluginError(what, "data.transforms", "copy `meta` of the record")
        by_source[record.meta["source"]].append(record)
    for name, records in by_source.items():
        if not records:
            what = f"the source '{name}' has no training record left"
            raise DataError(what, f"data.mixture.{name}", "loosen the transforms, or leave the source out")
    pools = {name: capped(records, cfg.mixture[name].cap, seed) for name, records in by_source.items()}
    sizes = {name: len(records) for name, records in pools.items()}
    shares = weights(sizes, cfg)
    drawn = quotas(shares, cfg.mix_size or size_without_repeats(sizes, shares))
    held = Counter(record.meta["source"] for record in heldout)
    described = {
        name: SourceInfo(
            available=len(by_source[name]),
            capped=sizes[name],
            weight=round(shares[name], 6),
            records=drawn[name],
            passes=round(drawn[name] / sizes[name], 4),
            heldout=held[name],
            part=known[name],
        )
        for name in by_source
    }
    return mix(pools, drawn, seed), described
