"""Between messages and token ids: prompts, completions, whole dialogues, and the checks that they are right.

Torch-free at import. Core.templates says which part of the text an assistant turn is; here the parts are tokenised
apart and each is closed by the end-of-turn token, so the boundary is exact and the end is trained.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from core.data.records import Message
from core.errors import DataError, ModelError
from core.files import object_in
from core.settings.schema import ModelConfig
from core.tokens.ends import end_ids
from core.tokens.frames import Said
from core.tokens.pieces import PieceTokenizer
from core.tokens.probing import NotPrefix
from core.tokens.templates import PRESETS, ChatLayout, DialogueText, preset
from core.tokens.tokenizer_files import load_tokenizer

_PROBE = (Message("user", "Probe."), Message("assistant", "Fine"))
TEMPLATE_TEXT = -1
"""Owner of tokens that belong to no turn."""


class Dialogue(NamedTuple):
    """Token ids, and the turn that each belongs to: its index, or TEMPLATE_TEXT. The end-of-turn token of an
    assistant turn belongs to the turn."""

    ids: list[int]
    owners: list[int]


class ChatCodec:
    """A checked tokenizer.

    eos: id of the end-of-turn token; every completion ends with it.
    ends: ids at which generation stops: `eos`, then those that the model's files name beside it.
    pad: id used only to fill rectangles in generation; never trained, and not the end-of-turn token where the
        vocabulary has another special token.
    rows: rows of the model's embedding; None where unknown.
    notes: what a user should know of how dialogues are written.
    template: file of the chat template, for messages.
    """

    def __init__(self, tokenizer: Any, max_length: int, rows: int | None = None, template: str = "") -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.rows = rows
        self.eos: int = tokenizer.eos_token_id
        self.ends: tuple[int, ...] = (self.eos,)
        self.layout = ChatLayout(tokenizer, template)
        self._pieces = PieceTokenizer(tokenizer)
        self.pad: int = self._padding()
        tokenizer.pad_token_id = self.pad  # saved with the artifact
        self.notes: list[str] = []

    def prompts(
        self, dialogues: Sequence[Sequence[Message]], tools: Sequence[Sequence[str]] | None = None
    ) -> list[list[int]]:
        """Token ids of dialogues that end before the assistant's turn, its opening included.

        tools: of each dialogue, JSON schemas of the functions that the assistant may call.
        Raises: DataError when the template refuses one.
        """
        offered = tools if tools is not None else [()] * len(dialogues)
        return self.tokenise([self.layout.prompt(*item) for item in zip(dialogues, offered, strict=True)])

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of completions as final turns, each closed by the end-of-turn token. A text may begin with its
        thought in <think>.

        Raises: DataError for a text that cannot be one: it ends inside, or thinks what the template cannot write.
        """
        return self.closed([self.layout.final(Message("assistant", text)) for text in texts])

    def closed(self, finals: Sequence[str]) -> list[list[int]]:
        """Token ids of the texts of final turns (`layout.final`), each closed by the end-of-turn token."""
        return [[*ids, self.eos] for ids in self.tokenise(finals)]

    def lay_out(
        self, turns: Sequence[Message], tools: Sequence[str], marked: Collection[int], contents: Collection[int] = ()
    ) -> list[DialogueText]:
        """A dialogue as one layout; as one for each marked turn, where the template does not render turn by turn.

        Raises: DataError when the template refuses the dialogue.
        """
        try:
            return [self.layout.lay_out(turns, tools, marked, contents)]
        except NotPrefix:
            if len(marked) == 1:
                raise _not_prefix() from None
        layouts = []
        done = 0
        for index in sorted(marked):
            new = [content for content in contents if done <= content < index]
            try:
                layouts.append(self.layout.lay_out(turns[: index + 1], tools, [index], new))
            except NotPrefix:
                raise _not_prefix() from None
            done = index
        return layouts

    def encode(self, layouts: Sequence[DialogueText]) -> list[Dialogue]:
        """Layouts as token ids with owners; all parts are tokenised in one call."""
        cut = [_parts(layout) for layout in layouts]
        encoded = iter(self.tokenise([text for parts in cut for text, _ in parts]))
        dialogues = []
        for layout, parts in zip(layouts, cut, strict=True):
            ids: list[int] = []
            owners: list[int] = []
            marked = {turn for _, _, turn in layout.spans}
            for _, owner in parts:
                piece = next(encoded)
                if owner in marked:
                    piece = [*piece, self.eos]
                ids += piece
                owners += [owner] * len(piece)
            dialogues.append(Dialogue(ids, owners))
        return dialogues

    def dialogue(self, turns: Sequence[Message], tools: Sequence[str] = ()) -> Dialogue:
        """A whole dialogue with all its assistant turns, up to the end of the last.

        Raises: DataError when there is none, or when the template does not render turn by turn: `lay_out` then gives
        one layout for each turn.
        """
        marked = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        if not marked:
            raise DataError("the dialogue has no assistant turn", f"roles {[turn.role for turn in turns]}")
        try:
            return self.encode([self.layout.lay_out(turns, tools, marked)])[0]
        except NotPrefix:
            raise _not_prefix() from None

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as they stand: the tokenizer adds nothing."""
        return self._pieces(texts) if texts else []

    @cached_property
    def begin_ids(self) -> list[int]:
        """[BOS] of a tokenizer that puts one before every text by itself, else nothing."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []

    def _padding(self) -> int:
        """The padding token, or another special token that the template does not use where that is the end-of-turn
        token: a model that is saved with one id for both cannot tell an end from filling."""
        tokenizer = self.tokenizer
        if tokenizer.pad_token_id not in (None, self.eos):
            return tokenizer.pad_token_id
        added = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
        used = {*self.prompts([_PROBE[:1]])[0], *self.completions([_PROBE[1].content])[0], tokenizer.bos_token_id}
        free = (token for token in [tokenizer.unk_token_id, *added] if token is not None and token not in used)
        return next(free, self.eos)

    def text(self, ids: Sequence[int]) -> str:
        """Plain text of token ids, special tokens left out. Of a completion `said` tells what of it is the answer."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def said(self, ids: Sequence[int]) -> Said:
        """What a completion says: thought and answer, plain text both, without the template's frame.

        A thought that was cut off has no answer.
        """
        frame = self.layout.frame
        own = ids[:-1] if len(ids) and ids[-1] in self.ends else ids
        read = frame.read(self.tokenizer.decode(own, skip_special_tokens=False))
        if read is None:
            return Said("", self.text(ids))
        if not read.answer:
            return Said(self._plain(read.thought), "", len(ids))
        return Said(self._plain(read.thought), self._plain(read.answer), self._answer_at(own))

    def parted(self, text: str) -> Said:
        """A written completion as thought and answer."""
        return self.layout.frame.inside(text) or Said("", text)

    def _answer_at(self, ids: Sequence[int]) -> int:
        """Place of the first token behind the thought and the frame, found by halves; 0 where there is neither."""

        def behind(count: int) -> bool:
            return self.layout.frame.closing_in(self.tokenizer.decode(ids[:count], skip_special_tokens=False))

        return bisect_left(range(len(ids)), True, key=behind) if behind(len(ids)) else 0

    def _plain(self, text: str) -> str:
        """A text without the texts of special tokens."""
        return self._special.sub("", text)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted({*added, *self.tokenizer.all_special_tokens}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))


def _not_prefix() -> DataError:
    return DataError(
        "the chat template is not prefix-preserving: a rendered prompt is not the beginning of the whole dialogue",
        "a dialogue of the data",
        "set model.chat_template=FILE with a template that renders turn by turn",
    )


def _parts(layout: DialogueText) -> list[tuple[str, int]]:
    """Pieces of the layout's text with their owners; the end-of-turn token behind a marked turn is left out."""
    pieces: list[tuple[str, int]] = []
    at = 0
    marked = set(layout.spans)
    for span in sorted([*layout.spans, *layout.contents]):
        start, end, turn = span
        if start > at:
            pieces.append((layout.text[at:start], TEMPLATE_TEXT))
        pieces.append((layout.text[start:end], turn))
        at = end + (layout.eos_length if span in marked else 0)
    return pieces


def load_codec(folder: Path, cfg: ModelConfig, gguf_file: str | None = None) -> ChatCodec:
    """Tokenizer of a model folder, checked. A tokenizer without a chat template gets ChatML, and a note says so.

    gguf_file: name of the GGUF file in the folder that the tokenizer is read from, where there is no other.

    Raises ModelError when the template does not end a turn with the tokenizer's EOS, when it is not
    prefix-preserving, begins with two BOS tokens, or uses tokens that the model's embedding lacks: each would train
    the wrong tokens.
    """
    where = f"model.source={cfg.source}"
    tokenizer = load_tokenizer(folder, bool(cfg.trust_remote_code), gguf_file)
    if cfg.eos_token:
        _known(tokenizer, cfg.eos_token, "model.eos_token")
        tokenizer.eos_token = cfg.eos_token
    if cfg.pad_token:
        _known(tokenizer, cfg.pad_token, "model.pad_token")
        tokenizer.pad_token = cfg.pad_token
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer names no end-of-sequence token", where, "set model.eos_token=…")
    notes = _choose_template(tokenizer, cfg)
    template = _template_file(folder, cfg)
    try:
        codec = ChatCodec(tokenizer, cfg.max_length, _embedding_rows(folder), template)
        codec.ends = end_ids(folder, codec.eos, codec.rows or len(tokenizer))
        _check(codec, where)
    except DataError as error:
        raise ModelError(
            f"the chat template cannot be rendered: {error.what.partition(': ')[2] or error.what}",
            f"{where}, {template}" if template else where,
            "set model.chat_template=FILE with a working one",
        ) from error
    except NotPrefix:
        raise ModelError(
            "the chat template is not prefix-preserving: a rendered prompt is not the beginning of the whole dialogue",
            where,
            "set model.chat_template=FILE with a template that renders turn by turn",
        ) from None
    codec.notes += notes
    return codec


def _choose_template(tokenizer: Any, cfg: ModelConfig) -> list[str]:
    """Give the tokenizer the configured template, or the default where it has none. Returns notes."""
    if cfg.chat_template in PRESETS:
        tokenizer.chat_template = preset(cfg.chat_template, tokenizer)
    elif cfg.chat_template:
        template = Path(cfg.chat_template).expanduser()
        if not template.is_file():
            raise ModelError(
                f"there is no file '{template}'", "model.chat_template", f"name a file, or one of {', '.join(PRESETS)}"
            )
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    elif not tokenizer.chat_template:
        tokenizer.chat_template = preset("chatml", tokenizer)
        return [
            f"the tokenizer has no chat template; turns are written in ChatML and end with '{tokenizer.eos_token}', "
            "and the artifact is saved with that template (model.chat_template chooses another)"
        ]
    return []


def _template_file(folder: Path, cfg: ModelConfig) -> str:
    """The file that the chat template comes from; empty where it comes from none."""
    if cfg.chat_template:
        return "" if cfg.chat_template in PRESETS else cfg.chat_template
    names = ("chat_template.jinja", "tokenizer_config.json")
    return next((str(folder / name) for name in names if (folder / name).is_file()), "")


def _embedding_rows(folder: Path) -> int | None:
    """Rows of the embedding, from config.json; None where it does not say."""
    config = object_in(folder / "config.json")
    inner = config.get("text_config")
    rows = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    return rows if isinstance(rows, int) else None


def _known(tokenizer: Any, token: str, key: str) -> None:
    if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id) and token != tokenizer.unk_token:
        raise ModelError(f"the tokenizer does not know the token '{token}'", key, "name a token of the vocabulary")


def _check(codec: ChatCodec, where: str) -> None:
    layout, tokenizer = codec.layout, codec.tokenizer
    asked, answered = [turn.as_dict() for turn in _PROBE[:1]], [turn.as_dict() for turn in _PROBE]
    opened, full = layout.render(asked, opened=True), layout.render(answered)
    segment = full[len(opened) :]
    if not layout.opens_thinking and (_PROBE[1].content not in segment or not full.startswith(opened)):
        raise NotPrefix
    behind = full.rpartition(_PROBE[1].content)[2]
    if not behind.strip():
        codec.notes.append(f"the chat template writes no end of turn; '{tokenizer.eos_token}' is trained as the end")
    elif layout.eos not in behind:
        tail = tokenizer(behind, add_special_tokens=False)["input_ids"]
        ends = tokenizer.convert_ids_to_tokens(tail[:1])[0]
        raise ModelError(
            f"the chat template ends the assistant's turn with '{ends}', but the tokenizer's EOS is "
            f"'{tokenizer.eos_token}': the model would never learn to stop",
            where,
            f"set model.eos_token='{ends}'",
        )
    ids = codec.prompts([_PROBE[:1]])[0]
    if doubled_bos(codec, ids):
        raise ModelError("the chat template begins with two BOS tokens", where, "set model.chat_template=FILE")
    check_embedding(codec, max([*ids, codec.eos, codec.pad]), where)
    trained = codec.tokenizer.decode(codec.completions([_PROBE[1].content])[0])
    written = f"{layout.frame.write('', _PROBE[1].content)}{layout.eos}"
    if "".join(trained.split()) != "".join(written.split()):
        raise ModelError(
            f"the tokenizer does not give back what it is given: an answer reads {trained!r} afterwards",
            where,
            "take a tokenizer whose decoding is the inverse of its encoding",
        )


def doubled_bos(codec: ChatCodec, ids: Sequence[int]) -> bool:
    """Whether the ids begin with two BOS tokens."""
    bos = codec.tokenizer.bos_token_id
    return bos is not None and list(ids[:2]) == [bos, bos]


def check_embedding(codec: ChatCodec, largest: int, where: str) -> None:
    """Raise ModelError when the token id `largest` has no row in the model's embedding."""
    if codec.rows is not None and largest >= codec.rows:
        token = codec.tokenizer.convert_ids_to_tokens(largest)
        raise ModelError(
            f"the token '{token}' has id {largest}, but the model's embedding has {codec.rows} rows",
            where,
            "use the tokenizer that belongs to the weights, or extend the embedding and save the model first",
        )
