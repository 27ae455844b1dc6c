"""What the public modules offer, read from the source: kind, signature, docstring, fields, methods, errors raised."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from types import ModuleType
from typing import Any

from core.settings.fields import Written, own_fields, written_in

MODULES = ("core.api", "core.torch_api")
"""What core offers to plugins. All that their `__all__` names is documented; the second one loads torch."""
EXTENDED = (
    "plugins.online", "plugins.online.group", "plugins.online.rollouts", "plugins.online.estimators", "plugins.sft",
    "plugins.sft.stage",
)  # fmt: skip
"""Modules of built-in stages that others may build on, in the same way."""

_OURS = {name.partition(".")[0] for name in (*MODULES, *EXTENDED)}
_UNSAID = ("Protocol", "Generic", "NamedTuple", "str", "Enum")
"""Bases that the kind says already."""


@dataclass(frozen=True)
class Definition:
    """A function, method or property."""

    name: str
    kind: str
    signature: str
    """With types, as the source writes them."""
    doc: str
    raises: tuple[str, ...] = ()
    """Names of the exceptions that its own `raise` statements make."""


@dataclass(frozen=True)
class Entry(Definition):
    """A public name."""

    module: str = ""
    """The public module that offers it."""
    extends: tuple[str, ...] = ()
    """Bases, but those without a public name, whose fields and methods stand among its own."""
    fields: dict[str, Written] = field(default_factory=dict)
    """Fields, members of an enumeration, attributes, constants of a module."""
    methods: list[Definition] = field(default_factory=list)
    """Methods and properties; functions and classes of a module."""


def entries() -> list[Entry]:
    """Every public name once, in the order of the modules and of their `__all__`. Imports the modules."""
    modules = map(importlib.import_module, (*MODULES, *EXTENDED))
    offered = [(name, module) for module in modules for name in module.__all__]
    public = {id(getattr(module, name)) for name, module in offered}
    return [_entry(name, module, public) for name, module in offered]


def _entry(name: str, module: ModuleType, public: set[int]) -> Entry:
    value = getattr(module, name)
    where = module.__name__
    if inspect.ismodule(value):
        body = ast.parse(inspect.getsource(value)).body
        constants = {key: item for key, item in _shown(written_in(body)).items() if item.doc}
        return Entry(name, "module", f"from {where} import {name}", inspect.getdoc(value) or "", (), where,
                     fields={key: dataclasses.replace(item, value="") for key, item in constants.items()},
                     methods=list(_defined(value, body)))  # fmt: skip
    if isinstance(value, type):
        return _class(name, value, where, public)
    if inspect.isfunction(value):
        return Entry(**vars(_function(_node(value), name)), module=where)
    text, doc = _constant(name, module)
    return Entry(name, "constant", text, doc, (), where)


def _defined(module: ModuleType, body: list[ast.stmt]) -> Iterator[Definition]:
    """Public functions and classes of a module, in the order of its source."""
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield _function(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found = _class(node.name, getattr(module, node.name), module.__name__, set())
            yield Definition(found.name, found.kind, found.signature, found.doc)


# -- classes -----------------------------------------------------------------------------------------------------------


def _class(name: str, value: type, where: str, public: set[int]) -> Entry:
    chain = [value, *(base for base in value.__mro__[1:] if _is_ours(base) and id(base) not in public)]
    methods: dict[str, Definition] = {}
    attributes: dict[str, Written] = {}
    maker: ast.FunctionDef | None = None
    for node in map(_node, chain):
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                maker = maker or item
                _merge(attributes, _set_by(item))
            elif isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                methods.setdefault(item.name, _function(item, skip=1))
    for base in chain:
        _merge(attributes, own_fields(base))
    kind, fields = _kind(value), attributes
    if dataclasses.is_dataclass(value) or kind == "named tuple":
        fields = _fields(value)
        arguments = [f"{key}: {item.type}" + (f" = {item.value}" if item.value else "") for key, item in fields.items()]
        signature = _call(name, arguments)
    else:
        signature = f"class {name}" if maker is None else _call(name, _arguments(maker.args, 1))
    raises = _raised(maker) if maker is not None else ()
    return Entry(name, kind, signature, inspect.cleandoc(value.__doc__ or ""), raises, where,
                 tuple(_bases(value, public)), _shown(fields), list(methods.values()))  # fmt: skip


def _is_ours(value: type) -> bool:
    return value.__module__.partition(".")[0] in _OURS


def _kind(value: type) -> str:
    if issubclass(value, Enum):
        return "enumeration"
    if issubclass(value, BaseException):
        return "error"
    if getattr(value, "_is_protocol", False):
        return "protocol"
    if dataclasses.is_dataclass(value):
        return "frozen dataclass" if vars(value)["__dataclass_params__"].frozen else "dataclass"
    return "named tuple" if issubclass(value, tuple) else "class"


def _bases(value: type, public: set[int]) -> Iterator[str]:
    """Bases as the source names them, without their types; one of ours without a public name gives its own."""
    for base, node in zip(value.__bases__, _node(value).bases, strict=False):
        if _is_ours(base) and id(base) not in public:
            yield from _bases(base, public)
        elif (said := ast.unparse(node).partition("[")[0]) not in _UNSAID:
            yield said


def _fields(value: type) -> dict[str, Written]:
    """Fields in the order in which they are given by place, inherited ones first."""
    found: dict[str, Written] = {}
    for base in reversed(value.__mro__):
        for name, item in own_fields(base).items():
            doc = item.doc or found.get(name, item).doc
            found[name] = dataclasses.replace(item, value=_default(item.value), doc=doc)
    names = getattr(value, "_fields", None) or [item.name for item in dataclasses.fields(value)]
    return {name: found[name] for name in names}


def _default(text: str) -> str:
    """`field(default_factory=dict)` as `{}`; another default as it is written."""
    call = ast.parse(text, mode="eval").body if text.startswith("field(") else None
    if not isinstance(call, ast.Call):
        return text
    given = {item.arg: ast.unparse(item.value) for item in call.keywords}
    factory = given.get("default_factory", "")
    return given.get("default") or {"dict": "{}", "list": "[]", "": ""}.get(factory, f"{factory}()")


def _set_by(maker: ast.FunctionDef) -> dict[str, Written]:
    """The attributes that `__init__` gives the object, with types where the source tells them."""
    types = {item.arg: ast.unparse(item.annotation) for item in maker.args.args if item.annotation}
    found: dict[str, Written] = {}
    for node in maker.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                for left, right in pairs:
                    if isinstance(left, ast.Attribute):
                        found[left.attr] = Written(types.get(right.id, "") if isinstance(right, ast.Name) else "")
    # With the attribute as a plain name the reader of class bodies knows the docstrings too.
    plain = [_without_self(node) for node in maker.body]
    _merge(found, {name: dataclasses.replace(item, value="") for name, item in written_in(plain).items()})
    return found


def _without_self(node: ast.stmt) -> ast.stmt:
    """`self.name: Type = value` as `name: Type = value`."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
        return ast.AnnAssign(ast.Name(node.target.attr), node.annotation, node.value, simple=1)
    if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Attribute):
        return ast.Assign([ast.Name(target.attr)], node.value)
    return node if isinstance(node, ast.Expr) else ast.Pass()


def _merge(into: dict[str, Written], more: dict[str, Written]) -> None:
    """Add names, and what was not known of those that are there."""
    for name, item in more.items():
        known = into.get(name, Written())
        into[name] = Written(known.type or item.type, known.value or item.value, known.doc or item.doc)


def _shown(fields: dict[str, Written]) -> dict[str, Written]:
    return {name: item for name, item in fields.items() if not name.startswith("_")}


# -- functions and constants -------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _node(value: Any) -> Any:
    """The `class` or `def` statement of an object."""
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def _function(node: ast.FunctionDef, name: str = "", skip: int = 0) -> Definition:
    """skip: how many arguments the caller does not write (`self`)."""
    marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
    kind = next((said for mark, said in (("property", "property"), ("cached_property", "property"),
                                         ("contextmanager", "context manager"), ("classmethod", "class method"))
                 if mark in marks), "function" if not skip else "method")  # fmt: skip
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    name = name or node.name
    arguments = _arguments(node.args, 0 if "staticmethod" in marks else skip)
    signature = f"{name}{result}" if kind == "property" else _call(name, arguments, result)
    return Definition(name, kind, signature, inspect.cleandoc(ast.get_docstring(node) or ""), _raised(node))


def _arguments(given: ast.arguments, skip: int) -> list[str]:
    places = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(places) - len(given.defaults)) + [*given.defaults]
    found = [_argument(one, default) for one, default in zip(places, defaults, strict=True)][skip:]
    if given.vararg is not None:
        found.append("*" + _argument(given.vararg))
    elif given.kwonlyargs:
        found.append("*")
    found += [_argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*found, "**" + _argument(given.kwarg)] if given.kwarg is not None else found


def _argument(one: ast.arg, default: ast.expr | None = None) -> str:
    return ast.unparse(one) + (f" = {ast.unparse(default)}" if default is not None else "")


def _call(name: str, arguments: list[str], result: str = "") -> str:
    """On one line where it fits into 100 characters, else one argument a line."""
    line = f"{name}({', '.join(arguments)}){result}"
    return line if len(line) <= 100 else "\n".join([f"{name}(", *(f"    {one}," for one in arguments), f"){result}"])


def one_line(signature: str) -> str:
    """A signature that `_call` wrapped, unwrapped."""
    return signature.replace("(\n    ", "(").replace(",\n)", ")").replace("\n    ", " ")


def _raised(node: ast.FunctionDef) -> tuple[str, ...]:
    """Names of the classes that the function's own `raise` statements name; functions inside it are left out."""
    found: dict[str, None] = {}
    waiting: list[ast.AST] = [*node.body]
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, ast.Raise):
            made = part.exc.func if isinstance(part.exc, ast.Call) else part.exc
            if isinstance(made, ast.Name):
                found[made.id] = None
        if not isinstance(part, ast.FunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(part)
    return tuple(found)


def _constant(name: str, module: ModuleType) -> tuple[str, str]:
    """(statement, docstring under it) of a value, from the module that makes it."""
    tree = ast.parse(inspect.getsource(module))
    own = written_in(tree.body)
    if name in own:
        return f"{name} = {own[name].value}", own[name].doc
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in [item.asname or item.name for item in node.names]:
            return _constant(name, importlib.import_module(node.module or ""))
    return name, ""
