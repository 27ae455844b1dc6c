"""The tokenizer of a model folder, as transformers reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import ModelError, describe
from core.files import read_object

_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
"""Files that transformers parses, where they are there."""


def load_tokenizer(folder: Path, remote_code: bool = False, gguf_file: str | None = None) -> Any:
    """The tokenizer of a folder as transformers reads it. Raises ModelError naming the folder, or the damaged file."""
    from transformers import AutoTokenizer

    for name in _JSON:
        if (folder / name).is_file():
            read_object(folder / name)
    try:
        kwargs = {"gguf_file": gguf_file} if gguf_file else {}
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code, **kwargs)
        tokenizer.decode(tokenizer("A word.")["input_ids"])  # settings of a wrong type show at work only
    except BaseException as error:  # tokenizers raises bare Exceptions for a damaged file, and panics beside them
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ModelError(
            f"the tokenizer could not be loaded: {describe(error)}", str(folder), "save a whole tokenizer there"
        ) from error
    return tokenizer
