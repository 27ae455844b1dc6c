"""Between messages and token ids: the chat template, the end-of-turn token, and the checks that they are right.

Torch-free at import. A prompt is rendered by the model's own chat template up to the opening of the assistant's turn;
a completion is tokenised apart and closed by the end-of-turn token, so the boundary is exact and the end is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import DataError, ModelError
from core.records import Message
from core.schema import ModelConfig

_PROBE = [{"role": "user", "content": "Probe."}]
_ANSWER = "Fine"


class ChatCodec:
    """A checked tokenizer.

    eos: id of the end-of-turn token; every completion ends with it.
    pad: id used only to fill rectangles in generation; never trained.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos

    def prompts(self, dialogues: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Token ids of dialogues that end before the assistant's turn, its opening included."""
        if not dialogues:
            return []
        texts = [self._render(dialogue) for dialogue in dialogues]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _render(self, dialogue: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                [message.as_dict() for message in dialogue], add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            roles = ", ".join(message.role for message in dialogue)
            raise DataError(
                f"the chat template refuses a prompt: {error}",
                f"a dialogue with the roles {roles}, beginning {dialogue[0].content[:60]!r}",
                "correct the row, or set model.chat_template=FILE with a template that takes such turns",
            ) from error

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of completions, each closed by the end-of-turn token."""
        if not texts:
            return []
        return [[*ids, self.eos] for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def text(self, ids: Sequence[int]) -> str:
        """Plain text of token ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def load_codec(folder: Path, cfg: ModelConfig, gguf_file: str | None = None) -> ChatCodec:
    """Tokenizer of a model folder, checked.

    Raises ModelError when there is no chat template, when the template does not end a turn with the tokenizer's EOS,
    or when the template is not prefix-preserving: each would train the wrong tokens.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    where = f"model.source={cfg.source}"
    try:
        kwargs = {"gguf_file": gguf_file} if gguf_file else {}
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=bool(cfg.trust_remote_code), **kwargs)
    except Exception as error:  # tokenizers raises bare Exceptions for a damaged file
        raise ModelError(
            f"the tokenizer could not be loaded: {type(error).__name__}: {error}".splitlines()[0],
            where,
            "save a whole tokenizer beside the weights",
        ) from error
    if cfg.chat_template:
        template = Path(cfg.chat_template).expanduser()
        if not template.is_file():
            raise ModelError(f"there is no file '{template}'", "model.chat_template")
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    if cfg.eos_token:
        _known(tokenizer, cfg.eos_token, "model.eos_token")
        tokenizer.eos_token = cfg.eos_token
    if cfg.pad_token:
        _known(tokenizer, cfg.pad_token, "model.pad_token")
        tokenizer.pad_token = cfg.pad_token
    try:
        _check(tokenizer, where)
    except TemplateError as error:
        raise ModelError(
            f"the chat template cannot be rendered: {error}", where, "set model.chat_template=FILE with a working one"
        ) from error
    return ChatCodec(tokenizer, cfg.max_length)


def _known(tokenizer: Any, token: str, key: str) -> None:
    if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id) and token != tokenizer.unk_token:
        raise ModelError(f"the tokenizer does not know the token '{token}'", key, "name a token of the vocabulary")


def _check(tokenizer: Any, where: str) -> None:
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template, so it is unknown how a turn begins and ends",
            where,
            "set model.chat_template=FILE with a Jinja template, or take an instruct model",
        )
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer names no end-of-sequence token", where, "set model.eos_token=…")
    opened = tokenizer.apply_chat_template(_PROBE, add_generation_prompt=True, tokenize=False)
    full = tokenizer.apply_chat_template([*_PROBE, {"role": "assistant", "content": _ANSWER}], tokenize=False)
    if not full.startswith(opened + _ANSWER):
        raise ModelError(
            "the chat template is not prefix-preserving: a rendered prompt is not the beginning of the whole dialogue",
            where,
            "set model.chat_template=FILE with a template that renders turn by turn",
        )
    tail = tokenizer(full[len(opened) + len(_ANSWER) :], add_special_tokens=False)["input_ids"]
    if not tail or tail[0] != tokenizer.eos_token_id:
        ends = tokenizer.convert_ids_to_tokens(tail[:1])[0] if tail else "nothing"
        raise ModelError(
            f"the chat template ends the assistant's turn with '{ends}', but the tokenizer's EOS is "
            f"'{tokenizer.eos_token}': the model would never learn to stop",
            where,
            f"set model.eos_token='{ends}'" if tail else "use a template that ends turns with the EOS token",
        )
    ids = tokenizer(opened, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos:
        raise ModelError("the chat template begins with two BOS tokens", where, "set model.chat_template=FILE")
