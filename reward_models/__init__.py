"""The library of reward models: names and typed configs. Torch-free; each implementation loads when it is chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from core.api import ConfigError, PlanView, RewardConfig, RewardSpec, check_regex, hookimpl, number, require
from reward_models.verdict import FIELDS, QUESTION


class Penalty(StrEnum):
    """How the `length` score falls with u = (distance beyond the tolerance) / width."""

    linear = "linear"
    """max(0, 1 - u)"""
    quadratic = "quadratic"
    """max(0, 1 - u^2)"""
    gaussian = "gaussian"
    """exp(-u^2 / 2)"""
    step = "step"
    """1 within the tolerance, else 0"""


class Side(StrEnum):
    """Which lengths `length` penalises."""

    both = "both"
    over = "over"
    under = "under"


class Aggregate(StrEnum):
    """How `ensemble` makes one value out of its members'."""

    mean = "mean"
    sum = "sum"
    min = "min"
    median = "median"


@dataclass
class LearnedConfig(RewardConfig):
    """Score of the Bradley-Terry reward model in the run's `reward_model` role."""

    source: str | None = None
    """Folder of a reward model (or of the run that made it); unset takes the one that the pipeline makes."""
    batch_tokens: int = number(8192, above=0)
    """Most tokens in one forward pass."""


@dataclass
class RegexConfig(RewardConfig):
    """1.0 where the completion matches `pattern`, else 0.0. A pattern that names <think> sees the thought too."""

    pattern: str = ""
    """Python regular expression; must be set."""
    full: bool = False
    """The whole completion must match, not just a part of it."""
    ignore_case: bool = False
    """Letters match whatever their case."""
    dot_all: bool = False
    """`.` matches line ends too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_regex("reward.pattern", self.pattern)

    def check(self) -> None:
        require(bool(self.pattern), "reward.pattern", "set (an empty pattern matches everything)", self.pattern)


@dataclass
class FormatConfig(RewardConfig):
    """Weighted share (0..1) of the asked criteria that the completion, stripped of outer white space, meets. Criteria
    that name <think> see the thought in that tag before the answer."""

    prefix: str = ""
    """Text it must start with; weight 1."""
    suffix: str = ""
    """Text it must end with; weight 1."""
    sections: list[str] = field(default_factory=list)
    """Tags that must each stand once as `<tag>…</tag>`, not empty, in this order, not overlapping; weight 1 each."""
    patterns: list[str] = field(default_factory=list)
    """Regular expressions that must each be found somewhere (`.` matches line ends too)."""
    weights: list[float] = number(list, above=0)
    """Weight of each of `patterns`; unset means 1 each."""
    all_or_nothing: bool = False
    """1.0 only where every criterion is met, else 0.0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for index, pattern in enumerate(self.patterns):
            check_regex(f"reward.patterns[{index}]", pattern)
        for index, tag in enumerate(self.sections):
            require(
                bool(re.fullmatch(r"[\w.:-]+", tag)), f"reward.sections[{index}]", "a bare tag name such as think", tag
            )
        require(len(set(self.sections)) == len(self.sections), "reward.sections", "without repetition", self.sections)
        require(len(self.weights) in (0, len(self.patterns)), "reward.weights", "as long as patterns", self.weights)

    def check(self) -> None:
        asked = bool(self.prefix or self.suffix or self.sections or self.patterns)
        require(asked, "reward.sections", "set, or one of prefix, suffix, patterns", self.sections)


@dataclass
class LengthConfig(RewardConfig):
    """1.0 at the target length, falling with the distance from it (see `shape`), never below 0."""

    target_tokens: int = number(0, at_least=0)
    """Wanted length in tokens of the completion; 0 is unset. Set this or target_chars."""
    target_chars: int = number(0, at_least=0)
    """Wanted length in characters of the completion; 0 is unset."""
    tolerance: int = number(0, at_least=0)
    """Distance, in the target's unit, that costs nothing."""
    width: int = number(0, at_least=0)
    """Distance beyond the tolerance at which u = 1, in the target's unit; 0 takes the target itself."""
    shape: Penalty = Penalty.linear
    """linear, quadratic, gaussian or step, as functions of u = distance beyond the tolerance / width."""
    side: Side = Side.both
    """Penalise lengths over the target, under it, or both."""
    thought: bool = False
    """Count the thought before the answer too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_tokens and self.target_chars:
            raise ConfigError(
                "'{key}' and '{part}.target_chars' are both set", mend="set one of them", key="reward.target_tokens"
            )

    def check(self) -> None:
        require(
            bool(self.target_tokens or self.target_chars), "reward.target_tokens", "> 0 (or target_chars)",
            self.target_tokens,
        )  # fmt: skip


@dataclass
class ExactConfig(RewardConfig):
    """1.0 where the completion's answer and the record's `answer` are the same text after normalisation, else 0.0.
    Both are always brought to Unicode form NFKC and runs of white space to one space."""

    strip: bool = True
    """Ignore outer white space."""
    lower: bool = False
    """Ignore case (Unicode case folding)."""
    punctuation: bool = False
    """Ignore punctuation, i.e. every character of Unicode category P."""
    extract: str = ""
    """Regular expression that takes the answer out of the completion: group 1 of its last match, or the whole match
    where it has no group. A completion without a match scores 0.0. Unset compares the whole completion."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_regex("reward.extract", self.extract)


@dataclass
class NumericConfig(RewardConfig):
    """1.0 where the completion's final answer equals the record's `answer` as a number or formula, else 0.0."""

    tolerance: float = number(1e-6, at_least=0)
    """Largest accepted absolute difference."""
    rel_tolerance: float = number(0.0, at_least=0)
    """Largest accepted difference as a share of the gold answer; the wider of the two tolerances counts."""
    require_marker: bool = False
    """Score 0.0 unless the answer stands in \\boxed{…}, after `####` or after "answer is"; else the last number counts
    where there is no marker."""
    symbolic: bool = True
    """Compare what is not a plain number with math-verify; otherwise it must be the same text."""


@dataclass
class JsonConfig(RewardConfig):
    """1.0 where the completion is valid JSON (RFC 8259) with the required keys, else 0.0."""

    keys: list[str] = field(default_factory=list)
    """Keys that the top-level object must have; unset accepts any JSON value."""
    partial: bool = False
    """Valid JSON scores the share of the keys that it has."""
    fenced: bool = True
    """Also accept JSON inside one ``` fence; text around the fence is ignored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(set(self.keys)) == len(self.keys), "reward.keys", "without repetition", self.keys)


@dataclass
class CodeConfig(RewardConfig):
    """1.0 where the program in the completion passes all tests of its record in a sandbox, else 0.0."""

    tests: str = "test_list"
    """Column of the record with the tests: Python statements (asserts), a list or one text; the record's `answer` is
    the test where there is no such column."""
    setup: str = "test_setup_code"
    """Column of the record with code that runs before the program, or behind it where it needs the program's names; it
    may be missing."""
    limit_s: float = number(4.0, above=0, at_most=86400)
    """Time for the program and its tests, wall clock, in seconds; over it they have failed. Below timeout_s."""
    memory_mb: int = number(512, above=0, at_most=1_000_000)
    """Address space of a process, in MB."""
    disk_mb: int = number(16, above=0, at_most=1_000_000)
    """What the program may write, in MB."""
    processes: int = number(8, above=0, at_most=1000)
    """Processes and threads at a time."""
    confine: bool = True
    """Run it in namespaces of its own, without network and the machine's files (Linux). false leaves resource limits
    alone: the program can then do what its user can."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.limit_s < self.timeout_s, "reward.limit_s", "below timeout_s", self.limit_s)


@dataclass
class EmbeddingConfig(RewardConfig):
    """Cosine (-1..1) of the completion's and the gold answer's mean last hidden states."""

    threshold: float = 0.9
    """As a judge: a completion counts as right from this cosine on."""
    source: str | None = None
    """Model to embed with, as model.source; unset takes the policy."""
    max_tokens: int = number(512, above=0)
    """Longer texts are cut."""
    batch_tokens: int = number(4096, above=0)
    """Most tokens in one forward pass, padding included."""


def check_prompt(prompt: str) -> None:
    """Raise ConfigError unless a judge's prompt holds its fields."""
    for name in FIELDS:
        require(name in prompt, "reward.prompt", f"a text with {name}", prompt)


@dataclass
class LlmConfig(RewardConfig):
    """Verdict of a model on whether the completion agrees with the gold answer: the policy's, or another model's."""

    source: str | None = None
    """Judging model, as model.source; unset takes the policy."""
    prompt: str = QUESTION
    """What it is asked; {question}, {reference} and {answer} are filled in. It must ask for "Verdict: yes" or
    "Verdict: no"."""
    max_new_tokens: int = number(0, at_least=0, at_most=1_000_000)
    """Longest reply in tokens; 0 compares the probabilities of the two verdicts instead of writing one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(self.prompt)


@dataclass
class EndpointConfig(RewardConfig):
    """Verdict of a model behind an OpenAI-compatible endpoint: 1.0 for yes, 0.0 for no."""

    timeout_s: float = 60.0
    """Wall-clock limit for one request, in seconds; over it the score counts as an error."""
    url: str = ""
    """Address of the API up to the version, e.g. http://localhost:8000/v1; must be set."""
    model: str = ""
    """Name of the model at the endpoint; must be set."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; empty where none is needed. The key itself is no setting."""
    prompt: str = QUESTION
    """What it is asked, see `llm`."""
    max_new_tokens: int = number(256, above=0, at_most=1_000_000)
    """Longest reply in tokens."""
    concurrency: int = number(8, above=0, at_most=1000)
    """Requests at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(self.prompt)

    def check(self) -> None:
        require(bool(self.model), "reward.model", "set", self.model)
        require(self.url.startswith(("http://", "https://")), "reward.url", "an http or https address", self.url)


@dataclass
class EnsembleConfig(RewardConfig):
    """Several reward models as one: aggregate(members) - spread_coef * spread."""

    members: list[dict[str, Any]] = field(default_factory=list)
    """One mapping each: `name`, `weight` (1.0 when unset), and the member's own parameters."""
    aggregate: Aggregate = Aggregate.mean
    """mean (weighted, by the sum of absolute weights), sum (weighted), min or median (of the values, unweighted)."""
    spread_coef: float = number(0.0, at_least=0)
    """The spread, i.e. the population standard deviation over the members' values, is subtracted times this."""
    allow_member_errors: bool = False
    """Leave out members that failed; otherwise one member's error makes the score an error. A sum is never taken over
    part of the members."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.allow_member_errors and self.aggregate is Aggregate.sum:
            raise ConfigError(
                "'{key}' does not go with {part}.aggregate=sum: a sum over part of the members is another reward",
                mend="set {part}.aggregate=mean",
                key="reward.allow_member_errors",
            )
        for index, member in enumerate(self.members):
            key = f"reward.members[{index}]"
            require(bool(member.get("name")), f"{key}.name", "the name of a reward model", member.get("name"))
            weight = member.get("weight", 1.0)
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            ranged = number and 0 < abs(weight) < float("inf")
            require(ranged, f"{key}.weight", "a finite number other than 0", weight)
            if weight != 1 and self.aggregate in (Aggregate.min, Aggregate.median):
                what = "'{key}' has no meaning with aggregate={aggregate}"
                raise ConfigError(what, mend="remove it", key=f"{key}.weight", aggregate=self.aggregate.value)

    def check(self) -> None:
        require(bool(self.members), "reward.members", "a list of at least one member", self.members)

    def uses(self) -> list[tuple[str, dict[str, Any]]]:
        own = ("name", "weight")
        return [(str(m["name"]), {k: v for k, v in m.items() if k not in own}) for m in self.members]


@hookimpl
def register_reward_models() -> list[RewardSpec]:
    """The built-in reward models."""
    rules = "reward_models.rules"
    return [
        RewardSpec("learned", LearnedConfig, "reward_models.bradley_terry:build",
                   "score of the trained Bradley-Terry model", needs_model=True),
        RewardSpec("regex", RegexConfig, f"{rules}:build_regex",
                   "1 where a pattern matches", isolated=True),
        RewardSpec("format", FormatConfig, f"{rules}:build_format",
                   "share of required prefix, suffix, sections and patterns", isolated=True),
        RewardSpec("length", LengthConfig, f"{rules}:build_length",
                   "nearness to a target length"),
        RewardSpec("exact", ExactConfig, f"{rules}:build_exact",
                   "same text as the gold answer", isolated=True, answers="text", needs_answer=True),
        RewardSpec("json", JsonConfig, f"{rules}:build_json",
                   "valid JSON with the required keys"),
        RewardSpec("numeric", NumericConfig, "reward_models.numeric:build",
                   "same number or formula as the gold answer (math-verify)", isolated=True, answers="number",
                   needs_answer=True, requires=("math_verify",)),
        RewardSpec("code", CodeConfig, "reward_models.code:build",
                   "1 where the program in the completion passes its tests, in a sandbox", isolated=True,
                   diagnose="reward_models.sandbox:diagnose"),
        RewardSpec("embedding", EmbeddingConfig, "reward_models.embedding:build",
                   "likeness to the gold answer: cosine of mean hidden states"),
        RewardSpec("llm", LlmConfig, "reward_models.llm:build",
                   "verdict of the policy or another model on agreement with the gold answer"),
        RewardSpec("endpoint", EndpointConfig, "reward_models.endpoint:build",
                   "the same verdict from an OpenAI-compatible endpoint", requires=("httpx",)),
        RewardSpec("ensemble", EnsembleConfig, "reward_models.ensemble:build",
                   "several reward models as one, with their spread"),
    ]  # fmt: skip


@hookimpl
def modify_plan(plan: PlanView) -> None:
    """Try the sandbox of each stage that runs programs: refuse where it cannot be had, and warn of what it lacks."""
    for stage in plan.stages:
        asked = {"reward": stage.cfg.reward} if stage.spec.rollouts else {}
        asked |= {"judge": stage.cfg.judge} if stage.spec.builds else {}
        for group, config in asked.items():
            for one in _programs(config) if stage.state != "reuse" else ():
                from reward_models.sandbox import Limits, Sandbox

                tried = Sandbox(Limits(one.limit_s, one.memory_mb, one.disk_mb, one.processes), one.confine)
                stage.warnings += [f"{group}=code: the sandbox does not hold {text}" for text in tried.lacking]


def _programs(config: RewardConfig) -> list[CodeConfig]:
    """The settings of `code`, where a reward model is that or has it as a member."""
    members = [CodeConfig(**values) for name, values in config.uses() if name == "code"]
    return [config, *members] if isinstance(config, CodeConfig) else members
