"""Reads what a config dataclass says of its fields: type, default, and the docstring under each. Torch-free."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

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

    def line(self) -> str:
        """`lr: float = 2e-05  Peak learning rate.`"""
        head = f"{self.name}: {self.type} = {self.default}"
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


@lru_cache(maxsize=256)
def _own_docs(config: type) -> dict[str, str]:
    """Docstrings under the fields that `config` itself declares, on one line each."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(config)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
    docs = {}
    for statement, following in pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            docs[statement.target.id] = " ".join(following.value.value.split())
    return docs


def field_docs(config: type) -> list[FieldDoc]:
    """The fields of a config dataclass in order of declaration, its own before inherited ones."""
    try:
        hints = get_type_hints(config)
    except Exception:
        hints = {item.name: item.type for item in dataclasses.fields(config)}
    found = []
    for item in dataclasses.fields(config):
        owner = next(base for base in config.__mro__ if item.name in vars(base).get("__annotations__", {}))
        doc = next((docs[item.name] for base in config.__mro__ if item.name in (docs := _own_docs(base))), "")
        if item.default is not dataclasses.MISSING:
            default = item.default
        elif item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        else:
            default = MISSING
        hint = hints.get(item.name, item.type)
        text = "" if dataclasses.is_dataclass(default) else default_text(default)
        found.append(FieldDoc(item.name, type_text(hint), text, doc, owner.__name__))
    rank = {base.__name__: place for place, base in enumerate(config.__mro__)}
    return sorted(found, key=lambda entry: rank[entry.owner])


def field_names(config: type) -> list[str]:
    """Names of the fields of a config dataclass."""
    return [item.name for item in dataclasses.fields(config)]
