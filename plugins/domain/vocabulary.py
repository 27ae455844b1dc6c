"""A larger vocabulary: new BPE pieces learned from a corpus, appended to tokenizer and model.

The new merges are learned on the corpus as the old tokenizer cuts it, and stand behind all old merges. So BPE first
does all that it did before and only then joins old tokens into new ones: the new tokenisation of any text is the old
one with some neighbours joined, old ids keep their meaning, and a text without a new piece keeps its ids. (Pieces
appended from a tokenizer trained apart, as in Chinese-LLaMA, arXiv:2304.08177, can change how old text is cut.)
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.api import ModelError
from core.torch_api import ChatCodec, Start, atomic_folder, load_codec, load_module

RECORD = "new_tokens.json"
_FIRST_SYMBOL = 0x10000
"""Each old token of the corpus stands for one character from here on, beyond the last surrogate."""
_SPARE = 2
"""So many times the pieces are learned, since some spell what the vocabulary has."""
_MIN_COUNT = 2
"""A pair that occurs less often is no piece."""
_BATCH = 256
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A byte of a character that the vocabulary lacks; no merge may begin inside such a character."""


@dataclass(frozen=True)
class Piece:
    """A new token: its spelling in the vocabulary's own alphabet, the two tokens that it joins, and the old ids."""

    text: str
    left: str
    right: str
    ids: tuple[int, ...]


def learn_pieces(tokenizer: Any, texts: Iterable[str], count: int) -> list[Piece]:
    """At most `count` pieces, the most frequent joins first. A piece never crosses a border of the pre-tokenizer.

    Raises ModelError for a tokenizer that is not BPE.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or json.loads(backend.to_str())["model"]["type"] != "BPE":
        raise ModelError(
            "the vocabulary cannot be extended: the tokenizer is not BPE", "stage.new_tokens", "set stage.new_tokens=0"
        )
    symbols: dict[int, str] = {}
    words = (
        " ".join("".join(symbols.setdefault(i, chr(_FIRST_SYMBOL + len(symbols))) for i in word) for word in words)
        for words in _words(tokenizer, texts)
    )
    # The corpus is read once before, because the trainer wants the alphabet's size.
    lines = list(words)
    known = tokenizer.get_vocab()
    symbol_trainer = Tokenizer(models.BPE())
    symbol_trainer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    symbol_trainer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=len(symbols) + _SPARE * count, min_frequency=_MIN_COUNT, show_progress=False,
            initial_alphabet=sorted(symbols.values()),
        ),
    )  # fmt: skip
    ids = {symbol: token for token, symbol in symbols.items()}
    spelled = dict(zip(ids, tokenizer.convert_ids_to_tokens(list(ids.values())), strict=True))
    found: list[Piece] = []
    for left, right in _merges(json.loads(symbol_trainer.to_str())["model"]["merges"]):
        if len(found) == count:
            break
        if left not in spelled or right not in spelled:  # made of a piece that was passed over
            continue
        text = spelled[left] + spelled[right]
        if text in known or any(piece.text == text for piece in found):
            continue
        spelled[left + right] = text
        found.append(Piece(text, spelled[left], spelled[right], tuple(ids[symbol] for symbol in left + right)))
    return found


def _words(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[list[int]]]:
    """Old token ids of each text, cut into words: where the pre-tokenizer cuts, before `▁`, and around tokens that
    BPE does not make."""
    apart = {*tokenizer.get_added_vocab().values(), tokenizer.unk_token_id}
    batch: list[str] = []

    def cut(batch: list[str]) -> Iterator[list[list[int]]]:
        encoded = tokenizer(batch, add_special_tokens=False)
        for number in range(len(batch)):
            tokens = encoded.tokens(number)
            place = 0
            keys = []
            for token, word, token_id in zip(tokens, encoded.word_ids(number), encoded["input_ids"][number],
                                             strict=True):  # fmt: skip
                alone = token_id in apart or _BYTE.fullmatch(token) is not None
                place += alone or token.startswith("▁")
                keys.append((word, place, alone))
            pairs = zip(keys, encoded["input_ids"][number], strict=True)
            yield [
                [token_id for _, token_id in group] for key, group in groupby(pairs, lambda pair: pair[0]) if not key[2]
            ]

    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield from cut(batch)
            batch = []
    if batch:
        yield from cut(batch)


def _merges(listed: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Pairs, from either way in which a tokenizer.json writes them."""
    for merge in listed:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def extend_tokenizer(folder: Path, pieces: Sequence[Piece], first_id: int) -> None:
    """Append the pieces, with the ids from `first_id` on, to the tokenizer.json of a folder."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    model = content["model"]
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    for number, piece in enumerate(pieces):
        model["vocab"][piece.text] = first_id + number
        model["merges"].append(f"{piece.left} {piece.right}" if as_text else [piece.left, piece.right])
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def extend_model(module: Any, pieces: Sequence[Piece], first_id: int, from_pieces: bool) -> None:
    """Give embedding and head a row for each piece; rows of old ids stay bit for bit.

    from_pieces: a row starts as the mean of the rows of the old tokens that it joins; else as the mean of all old rows.
    """
    old = {id(layer): layer.weight.detach().float().clone() for layer in _ends(module)}
    rows = [old[id(layer)] for layer in _ends(module)]
    size = max(first_id + len(pieces), rows[0].shape[0])
    module.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for layer, before in zip(_ends(module), rows, strict=True):
            new = slice(first_id, first_id + len(pieces))
            layer.weight[new] = _starts(before[:first_id], pieces, from_pieces).to(layer.weight)
            if getattr(layer, "bias", None) is not None:
                layer.bias[new] = layer.bias[:first_id].mean()


def _ends(module: Any) -> list[Any]:
    """Embedding and head; the embedding alone where they share one tensor."""
    inputs, outputs = module.get_input_embeddings(), module.get_output_embeddings()
    return [inputs] if outputs is None or outputs.weight is inputs.weight else [inputs, outputs]


def _end_names(module: nn.Module) -> list[str]:
    """Names of embedding and head, as peft looks for them."""
    ends = {id(layer) for layer in _ends(module)}
    return [name.rpartition(".")[2] for name, layer in module.named_modules() if id(layer) in ends]


def _starts(rows_Vd: Tensor, pieces: Sequence[Piece], from_pieces: bool) -> Tensor:
    """First values of the new rows, float32 [N, d]."""
    if not from_pieces:
        return rows_Vd.mean(dim=0).expand(len(pieces), -1)
    return torch.stack([rows_Vd[list(piece.ids)].mean(dim=0) for piece in pieces])


@dataclass(frozen=True)
class Extension:
    """New tokens: their pieces in the order of their ids, the first id, and bytes a token of the documents before and
    after."""

    pieces: list[Piece]
    first_id: int
    bytes_before: float
    bytes_after: float

    @property
    def ids(self) -> range:
        """Ids of the new tokens."""
        return range(self.first_id, self.first_id + len(self.pieces))


def extend_codec(start: Start, texts: Sequence[str], count: int) -> tuple[Extension, ChatCodec]:
    """Learn at most `count` pieces from the texts; the pieces, and the tokenizer with them. Loads no weights.

    Raises ModelError when the extended tokenizer, saved and loaded again, does not do what it should.
    """
    old = start.codec.tokenizer
    pieces = learn_pieces(old, texts, count)
    first_id = max(old.get_vocab().values()) + 1
    with tempfile.TemporaryDirectory(prefix="preftune-tokenizer-") as folder:
        old.save_pretrained(folder)
        extend_tokenizer(Path(folder), pieces, first_id)
        codec = load_codec(Path(folder), start.cfg.model)
    sample = list(texts[:_BATCH])
    before, after = (one(sample, add_special_tokens=False)["input_ids"] for one in (old, codec.tokenizer))
    _check(before, after, pieces, first_id)
    size = sum(len(text.encode()) for text in sample)
    extension = Extension(pieces, first_id, *(size / max(sum(map(len, ids)), 1) for ids in (before, after)))
    return extension, codec


def extended_start(
    start: Start, codec: ChatCodec, extension: Extension, folder: Path, from_pieces: bool
) -> tuple[Start, list[str]]:
    """The start with the new tokens, its model written into `folder` where it is not there yet; and the names of the
    layers that have a row for each token."""
    record = folder / RECORD
    if not folder.is_dir():
        module: Any = load_module(start.folder, start.cfg, start.dtype, "CAUSAL_LM")
        extend_model(module, extension.pieces, extension.first_id, from_pieces)
        with atomic_folder(folder) as part:
            module.save_pretrained(part)
            codec.tokenizer.save_pretrained(part)
            told = {
                "first_id": extension.first_id,
                "layers": _end_names(module),
                "pieces": [codec.tokenizer.decode([token]) for token in extension.ids],
            }
            (part / RECORD).write_text(json.dumps(told, ensure_ascii=False, indent=1), encoding="utf-8")
    return replace(start, weights=folder, own_codec=codec), json.loads(record.read_text(encoding="utf-8"))["layers"]


def _check(before: Sequence[list[int]], after: Sequence[list[int]], pieces: Sequence[Piece], first_id: int) -> None:
    """The new tokenisation of the documents, with each new token undone, must be the old one."""
    parts = {first_id + number: piece.ids for number, piece in enumerate(pieces)}
    for new, old in zip(after, before, strict=True):
        if [token for one in new for token in parts.get(one, (one,))] != old:
            raise ModelError(
                "the extended tokenizer cuts old text in another way than the old one",
                "stage.new_tokens",
                "set stage.new_tokens=0; please report the tokenizer's type",
            )
