"""What every set of texts must keep."""

from __future__ import annotations

from typing import Any, ClassVar

from core.platform.registry import Registry
from core.testing.contracts.base import Contract


class TextSetContract(Contract):
    """A named set of short texts."""

    text_set: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    """What its texts are for."""

    def entry(self) -> Any:
        found = Registry.load().text_sets.get(self.text_set)
        assert found is not None, f"no plugin brings the text set '{self.text_set}'"
        return found

    def test_it_is_of_its_kind(self) -> None:
        """The kind is one that another set, or a stage of this installation, has too; a misspelt one is never drawn."""
        kinds = {entry.spec.kind for entry in Registry.load().text_sets.values() if entry.owner != self.entry().owner}
        assert self.entry().spec.kind == self.kind
        assert not kinds or self.kind in kinds, f"no other set is of the kind '{self.kind}', these are: {kinds}"

    def test_no_text_stands_twice(self) -> None:
        texts = [text for category in self.entry().spec.texts.values() for text in category]
        assert len(texts) == len(set(texts)) and all(text == text.strip() for text in texts)
