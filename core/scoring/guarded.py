"""Scorers at work: every call is guarded, and what may hang or crash runs in worker processes that can be killed.

An error is never a zero: whatever goes wrong with one completion becomes Score(value=None, error=...) and is counted.
Isolated scorers live in processes started as `python -m core.scoring.worker`, which speak JSON lines over pipes; no
pickle crosses the border. Torch-free at import. POSIX only, like the signals it uses.
"""

from __future__ import annotations

import importlib
import math
import threading
import time
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import MAX_ERROR_CHARS, ConfigError, PluginError, describe
from core.settings.convert import from_plain, placed
from core.suggest import mend_of
from core.types import Score, Scorer, ScoreRequest

if typing.TYPE_CHECKING:
    from core.platform.specs import RewardSpec
    from core.settings.schema import RewardConfig

PART = "reward"
"""How the checks of a reward model call the place of its settings, wherever it stands."""


# ---- what a scorer is given -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScorerContext:
    """Second argument of a reward model's `build(config, context)`."""

    parts: Any = None
    """The run's core.torch_api.Parts: its models, engines and guests; None outside a run and in a worker process."""
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

        params: fields of its config as plain values. where: key of the setting that holds them.
        Raises: ConfigError for an unknown name, key or bad value.
        """
        spec = find_spec(name, self.specs, where)
        return GuardedScorer(spec, _config_of(spec, params or {}, where), self)


def find_spec(name: str, specs: Mapping[str, RewardSpec], key: str = "") -> RewardSpec:
    """specs[name]. Raises: ConfigError with the nearest and all known names; key: the setting that names it."""
    if name not in specs:
        offer = mend_of(name, specs, "known ones")
        raise ConfigError("unknown reward model {name}", "{key}", "{offer}", key=key, name=repr(name), offer=offer)
    return specs[name]


def _config_of(spec: RewardSpec, params: Mapping[str, Any], key: str) -> Any:
    """The config of a reward model out of the plain values at `key`."""
    values = {**params, "name": spec.name}
    return from_plain(spec.config, values, where=f"reward model '{spec.name}'", key=key, part=PART)


def involved(spec: RewardSpec, config: RewardConfig, specs: Mapping[str, RewardSpec]) -> list[RewardSpec]:
    """`spec` and every reward model that it asks (see RewardConfig.uses), each checked; nothing heavy is imported.

    The plan reads `needs_answer` and `needs_model` off the result. Raises: ConfigError for an incomplete config, an
    unknown member, or a member's bad parameters; its key is one of `reward`, as the checks of the config call it.
    """
    config.check()
    found = [spec]
    for index, (name, params) in enumerate(config.uses()):
        key = f"{PART}.members[{index}]"
        member = find_spec(name, specs, f"{key}.name")
        member_config = _config_of(member, params, key)
        try:
            found += involved(member, member_config, specs)
        except ConfigError as error:
            at = placed(error, member.config, key, PART)
            raise (at if at.where else at.within(f"reward model '{name}'")) from error
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
