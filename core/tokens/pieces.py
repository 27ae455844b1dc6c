"""Token ids of many texts by the pieces they share, where a tokenizer's rules keep pieces apart. Torch-free.

A tokenizer that splits text by a known rule before it merges bytes never joins a word to the space behind it. There
a text may be cut before every single space between two visible ASCII characters: the ids of the text are those of
its pieces. Most pieces return in other texts, so each is tokenised once, by the tokenizer itself, and remembered.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

FEWEST = 256
"""Fewer texts than this are tokenised whole: there is little to share."""
_PIECE_COST = 50
"""A new piece takes about as long as so many characters of whole texts: with too many of them texts are not cut."""
CHECKED_EVERY = 100
"""One text of so many is also tokenised whole, and must have the same ids."""
_CHARACTERS = 1 << 24
"""Characters of remembered pieces; with more the memory is emptied. About 300 MB."""

_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RULES = tuple(_RULE.replace("NUMBER", number) for number in (r"\p{N}", r"\p{N}{1,3}"))
"""Rules of the Qwen and Llama 3 families; that of GPT-2 is part of `ByteLevel`. In each a space before a visible
character begins a part of its own, and no part depends on the characters before it."""


def cuts_at_spaces(backend: Any) -> bool:
    """Whether the ids of a text are those of its `pieces`, by the rules of a tokenizer of the library tokenizers."""
    from tokenizers.models import BPE

    def rule(step: Any) -> dict[str, Any]:
        return json.loads(step.__getstate__()) if step is not None else {}

    normalizer = rule(backend.normalizer)
    return (
        isinstance(backend.model, BPE)
        and not backend.model.dropout
        and all(step["type"] == "NFC" for step in normalizer.get("normalizers", [normalizer] * bool(normalizer)))
        and _splits(rule(backend.pre_tokenizer))
        and not any(
            token.lstrip or token.rstrip or any(map(str.isspace, token.content))
            for token in backend.get_added_tokens_decoder().values()
        )
    )


def _splits(step: dict[str, Any]) -> bool:
    kind = step.get("type")
    if kind == "Sequence":
        # Digits cut only more: what is left of a text between two cuts is split by the rule as if it stood alone.
        steps = [one for one in step["pretokenizers"] if one["type"] != "Digits"]
        return bool(steps) and _splits(steps[0]) and all(one["type"] == "ByteLevel" for one in steps[1:])
    if kind == "Split":
        return step["behavior"] == "Isolated" and not step["invert"] and step["pattern"].get("Regex") in RULES
    return kind == "ByteLevel" and not step["add_prefix_space"] and bool(step["use_regex"])


def pieces(text: str) -> list[str]:
    """The text cut before each single space that stands between two visible ASCII characters."""
    found: list[str] = []
    before = ""
    for word in text.split(" "):
        if before and word and "!" <= before[-1] <= "~" and "!" <= word[0] <= "~":
            found.append(f" {word}")
        elif found:
            found[-1] += f" {word}"
        else:
            found.append(word)
        before = word
    return found


class PieceTokenizer:
    """Token ids of texts as the tokenizer gives them, without special tokens around them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}
        self._characters = 0
        self._rows = -1
        self._apart = False

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        if len(texts) < FEWEST or not self._may_cut():
            return self._whole(texts)
        cut = [pieces(text) for text in texts]
        new = list({piece for piece in chain.from_iterable(cut) if piece not in self._ids})
        if len(new) * _PIECE_COST > sum(map(len, texts)):
            return self._whole(texts)
        if new:
            encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(new, add_special_tokens=False)
            self._ids.update(zip(new, [one.ids for one in encoded], strict=True))
        found = [list(chain.from_iterable(map(self._ids.__getitem__, parts))) for parts in cut]
        self._characters += sum(map(len, new))
        if self._characters > _CHARACTERS:
            self._forget()
        if self._whole(texts[::CHECKED_EVERY]) != found[::CHECKED_EVERY]:
            self._apart = False
            return self._whole(texts)
        return found

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]

    def _may_cut(self) -> bool:
        """Whether texts may be cut; found out again, and the memory emptied, when tokens were added."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if len(self.tokenizer) != self._rows:
            self._rows = len(self.tokenizer)
            self._forget()
            self._apart = backend is not None and cuts_at_spaces(backend)
        # The tokenizer's last call may have left it cutting or filling.
        return self._apart and backend is not None and backend.truncation is None and backend.padding is None

    def _forget(self) -> None:
        self._ids.clear()
        self._characters = 0
