"""The contracts of three kinds."""

from core.api import Message, Record
from core.testing.contracts import (
    DialectContract,
    ReaderContract,
    TransformContract,
)


class TestCardsFile(ReaderContract):
    suffix = ".cards"
    content = b"sun | sol\nmoon | luna\n"
    rows = [{"card_front": "sun", "card_back": "sol"}, {"card_front": "moon", "card_back": "luna"}]


class TestCardsRow(DialectContract):
    dialect = "cards"
    row = {"card_front": "sun", "card_back": "sol"}
    record = {"prompt": "sun", "completion": "sol"}
    bad = {"card_front": "sun", "card_back": ""}


class TestShortBack(TransformContract):
    transform = "short_back"
    settings = {"max_words": 1}
    records = tuple(Record(prompt=(Message("user", "star"),), completion=back) for back in ("estrella", "una estrella"))
