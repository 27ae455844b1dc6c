"""Records to token ids in bulk: batches for the tokenizer's threads, quarantine for what does not fit, and the token
cache where it pays. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import core
from core.data.records import Record, fingerprint
from core.files import cache_dir, sha256_file
from core.settings.data_schema import Choice
from core.tokens.cache import SHARD_ROWS, Encode, cached_tokens

if TYPE_CHECKING:
    from core.tokens.codec import ChatCodec
    from core.tokens.examples import Demonstration
    from core.training.run import StageRun

CACHE_ROWS = 50_000
"""data.token_cache=auto keeps the tokens of more records than this on disk."""

_SAY_EVERY_SHARDS = 25


def encode_all(
    run: StageRun, records: Sequence[Record], encode: Encode, settings: dict[str, Any] | None = None
) -> Sequence[Demonstration]:
    """The examples that `encode` makes of the records; records of which it makes none go to quarantine.

    settings: JSON values that `encode` depends on beside the tokenizer and model.max_length: part of the cache's key.
    """
    with parallel_tokenizers():
        if not _worth_caching(run, records):
            made = encode(records)
            refused = [(row, reason) for row, reason in enumerate(made) if isinstance(reason, str)]
            examples: Sequence[Demonstration] = [item for items in made if not isinstance(items, str) for item in items]
        else:
            folder = cache_dir() / "tokens" / _key(run, records, settings or {})

            def said(done: int, count: int) -> None:
                if done == count or done % (_SAY_EVERY_SHARDS * SHARD_ROWS) == 0:
                    run.say(f"tokenised {done} of {count} records into {folder}")

            examples, refused = cached_tokens(folder, records, encode, said)
    for row, reason in refused:
        run.drop(records[row], reason)
    return examples


@contextmanager
def parallel_tokenizers() -> Iterator[None]:
    """Let fast tokenizers use their threads within the block. Elsewhere they are off: they do not survive a fork."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _worth_caching(run: StageRun, records: Sequence[Record]) -> bool:
    wanted = run.cfg.data.token_cache
    if wanted is Choice.auto:
        return len(records) > CACHE_ROWS or not isinstance(records, list)
    return wanted is Choice.always


def _key(run: StageRun, records: Sequence[Record], settings: dict[str, Any]) -> str:
    """Hash of all that the tokens depend on, 24 hex digits."""
    known = getattr(records, "fingerprint", None)
    parts = {
        "records": known or fingerprint(records),
        "tokenizer": tokenizer_fingerprint(run.codec),
        "max_length": run.cfg.model.max_length,
        "stage": run.stage_name,
        "settings": settings,
        "code": core.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def tokenizer_fingerprint(codec: ChatCodec) -> str:
    """SHA-256 in hex of the tokenizer's rules, its special tokens and its chat template."""
    tokenizer = codec.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = backend.to_str()
    else:  # a tokenizer in Python: its vocabulary, and the file of its model where it has one
        file = getattr(tokenizer, "vocab_file", None)
        rules = json.dumps([tokenizer.get_vocab(), sha256_file(file) if file else None], sort_keys=True)
    parts = [type(tokenizer).__name__, rules, tokenizer.chat_template, tokenizer.special_tokens_map, codec.eos]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
