"""Scorers at work: every call is guarded, and what may hang or crash runs in worker processes that can be killed.

An error is never a zero: whatever goes wrong with one completion becomes Score(value=None, error=...) and is counted.
Isolated scorers live in processes started as `python -m core.scoring.worker`, which speak JSON lines over pipes; no
pickle crosses the border. Torch-free at import. POSIX only, like the signals it uses.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import threading
import time
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from core.errors import MAX_ERROR_CHARS, ConfigError, PluginError, describe
from core.types import Score, Scorer, ScoreRequest

if typing.TYPE_CHECKING:
    from core.config.schema import RewardConfig
    from core.platform.specs import RewardSpec


# ---- typed configs from plain values -------------------------------------------------------------------------------


def typed_config(cls: type[Any], values: Mapping[str, Any], where: str = "") -> Any:
    """Instance of the dataclass `cls` from plain (JSON or YAML) values; fields left out keep their defaults.

    Raises: ConfigError naming `where` for an unknown key (with the nearest known one), a value of the wrong type, or
    what `__post_init__` refuses. Strings are taken as they stand: no interpolation, so a regex needs no escaping.
    """
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            mend = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(f"unknown key {key!r}", where=where, mend=f"{mend}known keys: {', '.join(sorted(known))}")
    typed = {key: _typed(hints[key], value, key, where) for key, value in values.items()}
    try:
        return cls(**typed)
    except ConfigError as error:
        if error.where or not where:
            raise
        raise ConfigError(error.what, where=where, mend=error.mend) from error


def _typed(hint: Any, value: Any, key: str, where: str) -> Any:  # noqa: PLR0911 - one return for each kind of type
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value, key, where)
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        items = [_typed(arguments[0] if arguments else Any, item, f"{key}[{i}]", where) for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict and isinstance(value, Mapping):
        return {name: _typed(arguments[1], item, f"{key}.{name}", where) for name, item in value.items()}
    if isinstance(hint, type):
        if issubclass(hint, Enum):
            try:
                return hint(value)
            except ValueError:
                names = ", ".join(str(member.value) for member in hint)
                raise ConfigError(f"'{key}' must be one of {names}, got {value!r}", where=where) from None
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            return typed_config(hint, value, f"{where}.{key}" if where else key)
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"'{key}' must be of type {name}, got {value!r}", where=where, mend=f"set {key} to a {name}")


# ---- what a scorer is given -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScorerContext:
    """Second argument of a reward model's `build(config, context)`."""

    run: Any = None
    """The StageRun, or None outside a run and in a worker process."""
    device: Any = "cpu"
    """Where a scorer with a model puts it."""
    dtype: Any = "fp32"
    """Number format of its forward pass."""
    specs: Mapping[str, RewardSpec] = field(default_factory=dict)
    """Every registered reward model by name; empty in a worker process."""

    def reward_spec(self, name: str) -> RewardSpec:
        """The registered reward model. Raises: ConfigError listing the known names."""
        return find_spec(name, self.specs)

    def make(self, name: str, params: Mapping[str, Any] | None = None, where: str = "reward") -> GuardedScorer:
        """A guarded scorer for a reward model used by another one.

        params: fields of its config as plain values. Raises: ConfigError for an unknown name, key or bad value.
        """
        spec = find_spec(name, self.specs, where)
        config = typed_config(spec.config, {**(params or {}), "name": name}, where=f"{where} ({name})")
        return GuardedScorer(spec, config, self)


def find_spec(name: str, specs: Mapping[str, RewardSpec], where: str = "") -> RewardSpec:
    """specs[name]. Raises: ConfigError with the nearest and all known names."""
    if name not in specs:
        near = difflib.get_close_matches(name, list(specs), n=1)
        mend = f"did you mean '{near[0]}'? " if near else ""
        known = ", ".join(sorted(specs))
        raise ConfigError(f"unknown reward model {name!r}", where=where, mend=f"{mend}known ones: {known}")
    return specs[name]


def involved(spec: RewardSpec, config: RewardConfig, specs: Mapping[str, RewardSpec]) -> list[RewardSpec]:
    """`spec` and every reward model that it asks (see RewardConfig.uses), each checked; nothing heavy is imported.

    The plan reads `needs_answer` and `needs_model` off the result. Raises: ConfigError for an incomplete config, an
    unknown member, or a member's bad parameters.
    """
    config.check()
    found = [spec]
    for index, (name, params) in enumerate(config.uses()):
        where = f"reward.members[{index}] ({name})"
        member = find_spec(name, specs, f"reward.members[{index}].name")
        member_config = typed_config(member.config, {**params, "name": name}, where=where)
        try:
            found += involved(member, member_config, specs)
        except ConfigError as error:
            raise ConfigError(error.what, where=error.where or where, mend=error.mend) from error
    return found


def resolve(path: str) -> Any:
    """The object at "package.module:name". Raises: PluginError when it cannot be imported."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"cannot load {path!r}: {describe(error)}", mend="check the spec's `impl`") from error


# ---- guarding one call ----------------------------------------------------------------------------------------------


def checked(score: Any) -> Score:  # noqa: PLR0911 - one return for each fault
    """`score` with a finite float value, or an error Score saying what is wrong with it."""
    if not isinstance(score, Score):
        return Score(None, error=f"TypeError: the scorer must return Score objects, got {type(score).__name__}")
    try:
        value = 0.0 if score.value is None else float(score.value)
        parts = {str(name): float(part) for name, part in score.parts.items()}
    except Exception as error:
        return Score(None, error=describe(error))
    if score.error is not None:
        parts = {name: part for name, part in parts.items() if math.isfinite(part)}
        return Score(None, error=" ".join(str(score.error).split())[:MAX_ERROR_CHARS] or "error", parts=parts)
    if score.value is None:
        return Score(None, error="the scorer returned neither a value nor an error")
    if not math.isfinite(value):
        return Score(None, error=f"the value is not finite: {value}")
    for name, part in parts.items():
        if not math.isfinite(part):
            return Score(None, error=f"part '{name}' is not finite: {part}")
    return Score(value, parts=parts, text=str(score.text))


def guarded_call(scorer: Scorer, requests: Sequence[ScoreRequest]) -> list[Score]:
    """scorer.score(requests) with every fault turned into error Scores; len(requests) Scores, in order.

    When a batch raises, its requests are scored one by one, so that one bad record costs one score.
    """
    try:
        scores = list(scorer.score(requests))
    except Exception as error:
        if len(requests) == 1:
            return [Score(None, error=describe(error))]
        return [score for request in requests for score in guarded_call(scorer, [request])]
    if len(scores) != len(requests):
        text = f"ValueError: the scorer returned {len(scores)} scores for {len(requests)} requests"
        return [Score(None, error=text)] * len(requests)
    return [checked(score) for score in scores]


class GuardedScorer:
    """A reward model behind its guard: faults become error Scores, and hangs too when the spec says `isolated`.

    spec, config: the registered reward model and its own dataclass.
    context: what `build` is given; an isolated scorer gets a bare one in its worker.
    Raises: ConfigError for an incomplete config, PluginError when the implementation cannot be loaded or built. An
    isolated scorer is loaded by its workers, which start at the first `score`.
    """

    def __init__(self, spec: RewardSpec, config: RewardConfig, context: ScorerContext) -> None:
        involved(spec, config, context.specs)
        self.spec, self.config = spec, config
        self.errors = 0
        """Error Scores given so far."""
        self.scored = 0
        """Scores given so far, errors included."""
        self.seconds = 0.0
        """Wall-clock time spent in `score`."""
        self.messages: Counter[str] = Counter()
        """How often each error text came; the first 20 texts."""
        self._lock = threading.Lock()
        self._pool = None
        if spec.isolated:
            from core.scoring.pool import WorkerPool

            self._pool = WorkerPool(spec.impl, config)
        self._scorer: Any = None if self._pool else resolve(spec.impl)(config, context)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One Score for each request, in order; never raises for a scorer's fault.

        Raises: PluginError when a worker cannot load the scorer at all.
        """
        if not requests:
            return []
        with self._lock:
            start = time.perf_counter()
            scores = self._pool.score(requests) if self._pool else guarded_call(self._scorer, requests)
            self.seconds += time.perf_counter() - start
            self.scored += len(scores)
            for score in scores:
                if score.error is not None:
                    self.errors += 1
                    if score.error in self.messages or len(self.messages) < 20:
                        self.messages[score.error] += 1
            return scores

    def close(self) -> None:
        """Kill the workers and free the scorer. Safe to call twice; also done at exit."""
        if self._pool is not None:
            self._pool.close()
        close = getattr(self._scorer, "close", None)
        if callable(close):
            close()


def summarise(scores: Sequence[Score]) -> dict[str, float | None]:
    """Numbers of a batch of scores: `mean` and `std` (population) over the valid values, None where there is none;
    `count` of all scores, `errors`, and `error_share` (0..1; 0 for an empty batch)."""
    values = [score.value for score in scores if score.value is not None]
    errors = len(scores) - len(values)
    mean = math.fsum(values) / len(values) if values else None
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) if mean is not None else None
    share = errors / len(scores) if scores else 0.0
    return {"mean": mean, "std": std, "count": float(len(scores)), "errors": float(errors), "error_share": share}
