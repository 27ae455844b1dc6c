"""XML: elements that hold text side by side, as rows.

Which elements are the rows is found from the file: of all paths whose elements hold two or more different children
with text (`<QAPair><Question>…</Question><Answer>…</Answer></QAPair>`), and all paths of repeated elements with text
alone of which at least half are of several words, the path with the most text in it. Document types are refused, so
no entity can be expanded or fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

from core.data.readers.bounds import TREE_BYTES
from core.data.readers.rows import Row
from core.errors import DataError

CHUNK_BYTES = 1 << 16
DEPTH = 200
"""Elements inside each other beyond which a file is refused."""


@dataclass
class _Element:
    """An element; its children are in their order."""

    tag: str
    line: int
    attributes: dict[str, str]
    texts: list[str] = field(default_factory=list)
    children: list[_Element] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts).strip()

    @property
    def size(self) -> int:
        """Characters of its own text and of its children that hold text alone."""
        return len(self.text) + sum(len(child.text) for child in self.children if not child.children)


class _Refused(Exception):
    """The file holds what is not read."""


def read_xml(file: IO[bytes], path: Path) -> Iterator[Row]:
    """Rows of an XML file. Raises: DataError for a file that is no XML or declares a document type."""
    root = _tree(file, path)
    paths: dict[tuple[str, ...], list[_Element]] = {}
    for names, element in _walk(root):
        paths.setdefault(names, []).append(element)
    best: list[_Element] = []
    most = 0
    for elements in paths.values():
        rows = [element for element in elements if len(_leaves(element)) > 1]
        lines = [element for element in elements if not element.children and element.text]
        said = sum(len(element.text.split()) > 1 for element in lines)
        for found in (rows, lines if len(lines) > 1 and 2 * said >= len(lines) else []):
            size = sum(element.size for element in found)
            if size > most:
                # elements beside the rows that lack one of their parts are bad rows, not none
                best, most = elements, size
    for element in best:
        yield Row(element.line, _columns(element) if element.children else {"text": element.text, **element.attributes})


def _leaves(element: _Element) -> set[str]:
    return {child.tag for child in element.children if not child.children and child.text}


def _walk(root: _Element) -> Iterator[tuple[tuple[str, ...], _Element]]:
    """Each element in the file's order, with the tags from the root to it."""
    stack: list[tuple[tuple[str, ...], _Element]] = [((root.tag,), root)]
    while stack:
        names, element = stack.pop()
        yield names, element
        stack.extend(((*names, child.tag), child) for child in reversed(element.children))


def _columns(element: _Element) -> dict[str, Any]:
    """Children and attributes by name; several of one name as a list. Attributes of a child that holds text stand
    beside it, where nothing else has their name."""
    values: dict[str, list[Any]] = {}
    for child in element.children:
        values.setdefault(child.tag, []).append(_columns(child) if child.children else child.text)
    row = {name: found[0] if len(found) == 1 else found for name, found in values.items()}
    if element.text:
        row.setdefault("text", element.text)
    for one in (element, *(child for child in element.children if not child.children)):
        for name, value in one.attributes.items():
            row.setdefault(name, value)
    return row


def _tree(file: IO[bytes], path: Path) -> _Element:
    parser = expat.ParserCreate()
    parser.buffer_text = True
    top = _Element("", 0, {})
    stack = [top]

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(stack) > DEPTH:
            raise _Refused(f"elements stand more than {DEPTH} deep")
        element = _Element(tag.rpartition(":")[2], parser.CurrentLineNumber, attributes)
        stack[-1].children.append(element)
        stack.append(element)

    def end(_tag: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].texts.append(data)

    def doctype(*_: object) -> None:
        raise _Refused("it declares a document type, whose entities may grow without end or name other files")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = doctype
    size = 0
    try:
        while chunk := file.read(CHUNK_BYTES):
            size += len(chunk)
            if size > TREE_BYTES:
                raise _Refused(f"it is longer than {TREE_BYTES >> 20} MB")
            parser.Parse(chunk, False)
        parser.Parse(b"", True)
    except (expat.ExpatError, _Refused, LookupError, ValueError) as error:
        what = f"not XML that can be read: {error}"
        raise DataError(what, f"{path}:{parser.CurrentLineNumber}", "write the file again") from error
    return top.children[0]
