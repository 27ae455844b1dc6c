"""The road that a model's sequences take through it."""

from __future__ import annotations

from dataclasses import dataclass

from core.settings.schema import Rows

PACKED = "packed rows"
"""Title of the road of every row that is packed."""


@dataclass(frozen=True)
class Road:
    """How a model's sequences go through it.

    rows: packed, padded, or one by one. why: for what is not packed, the reason. limit: longest sequence in tokens
    that packed rows serve, None for any; rows with a longer one are padded. alone: these go one by one.
    """

    rows: Rows = Rows.packed
    why: str = ""
    limit: int | None = None
    alone: bool = False

    @property
    def title(self) -> str:
        """For people: the road and its reason."""
        if self.rows is not Rows.packed:
            return f"{'one sequence at a time' if self.rows is Rows.single else 'padded rows'}: {self.why}"
        if self.limit is None:
            return PACKED
        beyond = "one at a time" if self.alone else "in padded rows"
        return f"packed rows; sequences of more than {self.limit} tokens {beyond}: {self.why}"
