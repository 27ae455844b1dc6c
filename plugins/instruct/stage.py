"""Instruction tuning: supervised training on all assistant turns, single-turn records in several phrasings (FLAN,
Longpre et al. 2023, arXiv:2301.13688)."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from core.api import DataError, Record
from plugins.instruct import InstructConfig
from plugins.instruct.phrasings import Phrasebook, columns_of
from plugins.sft.stage import Sft


class Instruct(Sft[InstructConfig]):
    """The stage."""

    @override
    def records(self, records: Sequence[Record]) -> Sequence[Record]:
        """The records, each in a phrasing drawn for it where one fits."""
        run, cfg = self.run, self.cfg
        if not cfg.templates or not records:
            return records
        book = Phrasebook.read(cfg.templates)
        names = columns_of(run.plan.dataset.info.train.mapping)
        phrased = [book.phrase(record, run.seed_for("phrasing"), cfg.options_frac, names) for record in records]
        fitting = sum("phrasing" in record.meta for record in phrased)
        if not fitting:
            raise DataError(
                f"no phrasing of stage.templates fits any of {len(records)} records",
                ", ".join(cfg.templates),
                "name templates whose variables are columns of the data: "
                + ", ".join(sorted(book.variables(records[0], names))),
            )
        run.log.say(f"{fitting} of {len(records)} records are phrased by {len(book.phrasings)} templates")
        return phrased
