"""Flash cards: a file format, a layout of rows and a filter."""

from dataclasses import dataclass

from core.api import (
    DialectSpec,
    Message,
    ReaderSpec,
    Row,
    RowError,
    TransformConfig,
    TransformSpec,
    hookimpl,
    number,
)

PREFTUNE_API = 2


def read(file, path):
    """`front | back` on each line of a `.cards` file."""
    for place, raw in enumerate(file, start=1):
        front, bar, back = raw.decode("utf-8", "replace").strip().partition("|")
        yield Row(place, {"card_front": front.strip(), "card_back": back.strip()} if bar else front,
                  None if bar else "there is no '|'")  # fmt: skip


def is_text(value):
    return isinstance(value, str)


def parse(values):
    if not values["card_back"]:
        raise RowError("the back is empty")
    return {"prompt": (Message("user", values["card_front"]),), "completion": values["card_back"]}


@dataclass
class BackConfig(TransformConfig):
    """Settings of `short_back`."""

    max_words: int = number(8, above=0)
    """Most words on the back of a card that stays."""


def build(config):
    return lambda record: "the back is long" if len((record.completion or "").split()) > config.max_words else ""


@hookimpl
def register_readers():
    return [ReaderSpec("cards", (".cards",), "acme_cards:read", "front | back on each line")]


@hookimpl
def register_dialects():
    columns = dict.fromkeys(("card_front", "card_back"), is_text)
    return [DialectSpec("cards", columns, parse, "a flash card", {name: (name,) for name in columns})]


@hookimpl
def register_record_transforms():
    return [TransformSpec("short_back", BackConfig, "acme_cards:build", "filter", "1", "drops cards with a long back")]
