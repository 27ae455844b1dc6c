"""Every numeric setting of core and of the plugins: it declares what it may be, and is held to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

import pytest

from core.api import ConfigError, StageConfig, number
from core.platform.kinds import KINDS
from core.platform.registry import Registry
from core.settings.convert import from_plain
from core.settings.ranges import Range, declared, inner_type, ranges
from core.settings.schema import RunConfig


def classes_below(config: type) -> Iterator[type]:
    """The class and the settings classes that its fields hold."""
    yield config
    for hint in get_type_hints(config).values():
        if dataclasses.is_dataclass(inner := inner_type(hint)):
            yield from classes_below(inner)


def settings_classes() -> list[type]:
    """Every class of settings: core's, and those that the installed plugins register."""
    registry = Registry.load()
    roots = [RunConfig] + [entry.spec.config for kind in KINDS if kind.base for entry in registry.table(kind).values()]
    return list(dict.fromkeys(config for root in roots for config in classes_below(root)))


NUMBERS = [(config, name) for config in settings_classes() for name in ranges(config)]


def test_there_are_numbers_to_look_at():
    assert len(NUMBERS) > 300 and (RunConfig not in dict(NUMBERS))


@pytest.mark.parametrize(("config", "name"), NUMBERS, ids=[f"{c.__name__}.{n}" for c, n in NUMBERS])
def test_a_number_declares_its_range_and_keeps_to_it(config, name):
    assert declared(config, name) is not None, f"{config.__module__}: declare it with number(…)"
    for value in (math.nan, math.inf, -math.inf, 10**39):
        assert_refused(config, name, value)
    held = ranges(config)[name]
    for bound, inside in ((held.above, False), (held.at_least, True), (held.below, False), (held.at_most, True)):
        assert bound is None or held.holds(bound) is inside
    if not held.holds(-1):
        assert_refused(config, name, -1)


def assert_refused(config: type, name: str, value: float) -> None:
    hint, inner = str(get_type_hints(config)[name]), inner_type(get_type_hints(config)[name])
    if inner is int and isinstance(value, float):
        return  # the check of types comes first
    given: Any = [value] if hint.startswith("list") else {"user": value} if hint.startswith("dict") else value
    with pytest.raises(ConfigError, match=r"must be .*(finite|[<>]|between)") as caught:
        from_plain(config, {name: given}, key="here")
    assert caught.value.key.startswith(f"here.{name}") and caught.value.exit_code == 2 and caught.value.mend


@dataclass
class Inner:
    """Settings inside settings, of a plugin that extends nothing."""

    share: float = number(0.5, above=0, below=1)


@dataclass
class Careless(StageConfig):
    """A plugin's settings that forget the checks of their base, and work with a number while they are made."""

    lr: float = 1e-3
    size: int = 4
    inner: Inner = dataclasses.field(default_factory=Inner)
    many: dict[str, Inner] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.part = 1 / self.size


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"lr": 0.0}, "stage.lr"),  # the base's range, though the field has a default of its own
        ({"size": math.inf}, "stage.size"),
        ({"inner": {"share": 1.5}}, "stage.inner.share"),
        ({"many": {"a": {"share": 0.1}, "b": {"share": 0.0}}}, "stage.many.b.share"),
        ({"epochs": math.nan}, "stage.epochs"),
    ],
)
def test_a_plugin_that_forgets_its_base_is_held_too(values, key):
    with pytest.raises(ConfigError) as caught:
        from_plain(Careless, values, key="stage")
    assert key in caught.value.what


def test_an_object_made_by_hand_is_checked():
    with pytest.raises(ConfigError, match="'lr' must be > 0 and <= 100, got -1"):
        StageConfig(lr=-1)


@pytest.mark.parametrize(
    ("held", "text"),
    [
        (Range(), "finite"), (Range(above=0), "> 0"), (Range(at_least=0, below=1), ">= 0 and < 1"),
        (Range(at_least=16, at_most=1024), "between 16 and 1024"), (Range(above=0, at_most=1), "> 0 and <= 1"),
    ],
)  # fmt: skip
def test_a_range_in_words(held, text):
    assert str(held) == text
