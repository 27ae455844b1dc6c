"""Settings that stages on raw text share. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.api import StageConfig, find_files, number


@dataclass
class TextStageConfig(StageConfig):
    """Settings of a stage that trains on raw text."""

    chunk_tokens: int | None = number(None, above=1)
    """Longest chunk of a document in tokens; unset takes what model.max_length leaves."""
    end_token: str | None = None
    """Token that closes each document; unset takes the tokenizer's EOS."""
    eval_tokens: int = number(16384, above=0)
    """Most tokens of the held-out text that are scored."""


def check_files(named: Mapping[str, str | None]) -> None:
    """Raise ConfigError for a file, folder or hub dataset of raw text that is not there, by the key that names it."""
    for key, name in named.items():
        if name:
            find_files(Path(name).expanduser(), "text", key=key)
