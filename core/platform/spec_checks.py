"""Whether what a plugin registers can be used as it stands. Torch-free."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from typing import Any, Protocol

from core.errors import PluginError
from core.platform.specs import ROLES, SCHEMAS, DialectSpec, PeftMethodSpec, ReaderSpec, StageSpec, TextSetSpec
from core.settings.fields import lines_of
from core.settings.peft_methods import methods


class Spec(Protocol):
    """Anything that a plugin registers."""

    @property
    def name(self) -> str:
        """What the user types."""


class LoadedSpec(Spec, Protocol):
    """What names its code."""

    @property
    def impl(self) -> str:
        """ "package.module:Name"."""


WORD = (re.compile(r"[A-Za-z][A-Za-z0-9_]*"), "letters, digits and _")
COMMAND = (re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*"), "small letters, digits and -")
"""What a name may look like, and that in words."""
_SUFFIX = re.compile(r"\.[a-z0-9_]+")
_IMPL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def specs_of(value: Any, kind: type) -> list[Any]:
    """The specs in what a hook returned; PluginError when it is anything but a list of `kind`."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
        given = f"a {type(value).__name__}" if isinstance(value, kind) else repr(value)
        raise PluginError(f"must return a list of {kind.__name__}, returned {given}")
    return list(value)


RETURNED = {
    "build_data": ("StageData", ("train", "heldout")),
    "make_data": ("StageData", ("train", "heldout")),
    "collect_batch": ("Batch", ("updates", "tokens")),
    "compute_loss": ("LossOutput", ("loss", "metrics")),
    "evaluate": ("Evaluation", ("metrics", "items")),
}
"""Stage hook to what it returns, and the attributes by which that is known."""


def check_returned(value: Any, hook: str, impl: str) -> Any:
    """`value`, which the hook of a stage returned; PluginError where it lacks an attribute of what RETURNED says."""
    kind, needs = RETURNED[hook]
    if all(hasattr(value, name) for name in needs):
        return value
    mend = f"let {hook} return a {kind}; mypy finds such faults before a run"
    raise PluginError(f"{hook} must return a {kind}, returned a {type(value).__name__}", where=impl, mend=mend)


def check_spec(spec: Any, base: type | None, names: tuple[re.Pattern[str], str]) -> None:
    """Raise PluginError unless name, import path and config, where the kind has them, can be used as they stand."""
    pattern, allowed = names
    if not pattern.fullmatch(spec.name):
        raise PluginError(f"{type(spec).__name__} has the name {spec.name!r}; use {allowed}")
    if not _IMPL.fullmatch(getattr(spec, "impl", "not:asked")):
        raise PluginError(f"{spec.name}: impl is {spec.impl!r}; write 'package.module:Name'")
    if base is not None:
        if not (isinstance(spec.config, type) and issubclass(spec.config, base)):
            raise PluginError(f"{spec.name}: config must be a dataclass that extends {base.__name__}")
        if "__dataclass_params__" not in vars(spec.config):
            raise PluginError(f"{spec.name}: {spec.config.__name__} lacks the @dataclass decorator")
        _check_annotated(spec.config, base)


def _check_annotated(config: type, base: type) -> None:
    """Raise PluginError for a value in the body of a config that has no type, and so is no setting.

    A constant that is meant so begins with an underscore, is in capitals, or says ClassVar.
    """
    for kind in config.__mro__:
        if kind in base.__mro__:
            continue
        for name, value in vars(kind).items():
            is_code = callable(value) or isinstance(value, property | classmethod | staticmethod)
            if name.startswith("_") or name.isupper() or is_code or name in inspect.get_annotations(kind):
                continue
            where = f"{inspect.getsourcefile(kind) or kind.__module__}, line {lines_of(kind).get(name, '?')}"
            raise PluginError(
                f"{kind.__name__}.{name} has no type, so it would be no setting", where,
                f"write {name}: {type(value).__name__} = …; begin its name with an underscore if it is none",
            )  # fmt: skip


def check_choice(spec: Any, field: str, choices: Collection[str]) -> None:
    """Raise PluginError unless a field holds one of `choices`."""
    if (value := getattr(spec, field)) not in choices:
        raise PluginError(f"{spec.name}: {field} is {value!r}; must be one of {', '.join(choices)}")


# What one kind alone has. Each raises PluginError.


def check_stage(spec: StageSpec) -> None:
    """Its schema and roles are known, and its algorithm has a name that can be typed."""
    check_choice(spec, "data", SCHEMAS)
    if unknown := [role for role in (*spec.roles, *spec.after) if role not in ROLES]:
        raise PluginError(f"{spec.name}: unknown role {unknown[0]!r}; must be one of {', '.join(ROLES)}")
    pattern, allowed = WORD
    if spec.algorithm and not pattern.fullmatch(spec.algorithm):
        raise PluginError(f"{spec.name}: algorithm has the name {spec.algorithm!r}; use {allowed}")


def check_peft_method(spec: PeftMethodSpec) -> None:
    """The installed peft library has its base."""
    if (known := methods()) and spec.base not in known:
        raise PluginError(f"{spec.name}: base is {spec.base!r}; must be a method of peft: {', '.join(known)}")


def check_reader(spec: ReaderSpec) -> None:
    """It has suffixes that files can have."""
    if not (spec.suffixes and all(map(_SUFFIX.fullmatch, spec.suffixes))):
        raise PluginError(f"{spec.name}: suffixes is {spec.suffixes!r}; write e.g. ('.xyz',), in lower case")


def check_text_set(spec: TextSetSpec) -> None:
    """There are texts, and none is empty."""
    if not spec.texts or not all(texts and all(text.strip() for text in texts) for texts in spec.texts.values()):
        raise PluginError(f"{spec.name}: texts must name at least one category, and no text may be empty")


def check_dialect(spec: DialectSpec) -> None:
    """Its tests are functions, and its fields are told apart."""
    if not spec.required:
        raise PluginError(f"{spec.name}: required is empty, so every row would fit")
    tests = {**spec.required, **spec.optional, "parse": spec.parse}
    if wrong := [name for name, test in tests.items() if not callable(test)]:
        raise PluginError(f"{spec.name}: '{wrong[0]}' is no function")
    if wrong := [name for name in spec.aliases if name not in tests]:
        raise PluginError(f"{spec.name}: aliases names '{wrong[0]}', which is neither required nor optional")
    if spec.named and not spec.aliases.get("prompt"):
        raise PluginError(f"{spec.name}: named=True asks for the columns of 'prompt' in aliases")


def structured(config: type) -> Any:
    """The dataclass as an OmegaConf node; PluginError when a field has a type that OmegaConf cannot hold."""
    from omegaconf import OmegaConf

    try:
        return OmegaConf.structured(config)
    except Exception as error:
        text = str(error).splitlines()[0]
        raise PluginError(f"{config.__name__} cannot be used as a config: {text}") from error
