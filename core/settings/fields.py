"""Reads what a config dataclass says of its fields: type, default, and the docstring under each. Torch-free."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import zip_longest
from typing import Any, get_args, get_origin, get_type_hints

from core.settings.ranges import Range, declared
from core.settings.rules import MISSING


@dataclass(frozen=True)
class FieldDoc:
    """One field, as help and error messages show it."""

    name: str
    type: str
    default: str
    doc: str
    owner: str
    """Class that declares it."""
    allowed: str = ""
    """Bounds of a number that has some, `> 0 and <= 100`."""

    @property
    def kind(self) -> str:
        """`float > 0 and <= 100`: type and bounds."""
        return f"{self.type} {self.allowed}".rstrip()

    def line(self) -> str:
        """`lr: float = 2e-05 (> 0 and <= 100)  Peak learning rate.`"""
        head = f"{self.name}: {self.type} = {self.default}" + (f" ({self.allowed})" if self.allowed else "")
        return f"{head}  {self.doc}" if self.doc else head


def type_text(hint: Any) -> str:
    """A type as a user reads it; the members of an enumeration are listed."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "|".join(member.name for member in hint)
    if hint is type(None):
        return "null"
    if get_origin(hint) is None and isinstance(hint, type):
        return hint.__name__
    arguments = get_args(hint)
    if arguments and type(None) in arguments:
        return " | ".join(type_text(argument) for argument in arguments)
    if (origin := get_origin(hint)) in (list, dict, tuple) and arguments:
        return f"{origin.__name__}[{', '.join(type_text(argument) for argument in arguments)}]"
    return str(hint).replace("typing.", "")


def default_text(value: Any) -> str:
    """A default as it is typed on the command line."""
    if value is None:
        return "null"
    if value == MISSING and isinstance(value, str):
        return "(must be given)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str) and not value:
        return "''"
    return str(value)


@dataclass(frozen=True)
class Written:
    """A name in the body of a class as its source has it: annotation, value, and the docstring under it on one line."""

    type: str = ""
    value: str = ""
    doc: str = ""


def written_in(body: Sequence[ast.stmt]) -> dict[str, Written]:
    """The names that statements give a type or a value, in order."""
    found = {}
    for statement, following in zip_longest(body, body[1:]):
        target: ast.expr
        if isinstance(statement, ast.AnnAssign):
            target, hint = statement.target, ast.unparse(statement.annotation)
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, hint = statement.targets[0], ""
        else:
            continue
        if isinstance(target, ast.Name):
            value = ast.unparse(statement.value) if statement.value is not None else ""
            found[target.id] = Written(hint, value, _text(following))
    return found


def _text(statement: ast.stmt | None) -> str:
    """A statement that is a string and nothing else, on one line; else empty."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return " ".join(value.value.split()) if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


@lru_cache(maxsize=256)
def own_fields(config: type) -> dict[str, Written]:
    """What `config` itself declares, without what it inherits; empty where its source cannot be read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(config)))
    except (OSError, TypeError, SyntaxError):
        return {}
    return written_in(tree.body[0].body) if tree.body and isinstance(tree.body[0], ast.ClassDef) else {}


def lines_of(config: type) -> dict[str, int]:
    """Line of its file on which a class gives each name a value or a type; empty where its source cannot be read."""
    try:
        source, first = inspect.getsourcelines(config)
        body = ast.parse(textwrap.dedent("".join(source))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    found = {}
    for statement in getattr(body, "body", ()):
        for target in [*getattr(statement, "targets", ()), getattr(statement, "target", None)]:
            if isinstance(target, ast.Name):
                found[target.id] = first + statement.lineno - 1
    return found


@lru_cache(maxsize=512)
def hints_of(config: type) -> dict[str, Any]:
    """Type of each field of a config dataclass; none where an annotation cannot be read, as a plugin's may be."""
    try:
        return get_type_hints(config)
    except Exception:
        return {}


def field_docs(config: type) -> list[FieldDoc]:
    """The fields of a config dataclass in order of declaration, its own before inherited ones."""
    hints = hints_of(config)
    found = []
    for item in dataclasses.fields(config):
        owner = next(base for base in config.__mro__ if item.name in vars(base).get("__annotations__", {}))
        texts = (own_fields(base).get(item.name, Written()).doc for base in config.__mro__)
        if item.default is not dataclasses.MISSING:
            default = item.default
        elif item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        else:
            default = MISSING
        hint = hints.get(item.name, item.type)
        text = "" if dataclasses.is_dataclass(default) else default_text(default)
        held = declared(config, item.name) or Range()
        allowed = str(held) if held != Range() else ""
        found.append(FieldDoc(item.name, type_text(hint), text, next(filter(None, texts), ""), owner.__name__, allowed))
    rank = {base.__name__: place for place, base in enumerate(config.__mro__)}
    return sorted(found, key=lambda entry: rank[entry.owner])


def field_names(config: type) -> list[str]:
    """Names of the fields of a config dataclass."""
    return [item.name for item in dataclasses.fields(config)]
