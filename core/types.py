"""What flows between core and plugins. Torch-free at import; shapes and units are in the docstrings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

M = TypeVar("M")
"""A micro-batch of a stage."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    max_new_tokens: int
    """Most tokens of a completion, the stop token among them."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Share of the probability mass to draw from, the likeliest tokens first; 1 keeps the whole vocabulary."""
    top_k: int = 0
    """How many of the likeliest tokens to draw from; 0 keeps the whole vocabulary."""
    n: int = 1
    """Completions for each prompt."""
    seed: int = 0
    """The same seed and weights give the same completions."""
    stop_token_ids: tuple[int, ...] = ()
    """A completion ends with the first of these; the token is kept."""


@dataclass
class Rollout:
    """One sampled completion. Token ids are kept as drawn and never retokenised."""

    prompt_ids: list[int]
    completion_ids: list[int]
    """Includes the stop token when there is one."""
    logprobs: list[float]
    """Behaviour log-probability of each completion token in nats, under `temperature` (natural when greedy)."""
    finished: bool
    """True when a stop token ended it; False when it ran into max_new_tokens."""
    policy_version: int = 0
    """Version of the weights that drew it, as last given to `RolloutEngine.sync`."""
    prompt_index: int = 0
    """Index of its prompt in the call."""


class RolloutEngine(Protocol):
    """Makes completions. Built by `build(config, start, module)` of its module, see EngineSpec."""

    name: str
    """Name of its spec."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Rollout]:
        """Completions in the order of the prompts, the n of one prompt side by side: len(prompts) * n rollouts."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probability in nats of each token but the first, given those before it: for a sequence of T token
        ids T - 1 numbers."""

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Take the policy's merged weights, under their names in the plain transformers model. `version` counts
        optimizer steps and goes into the rollouts."""

    def close(self) -> None:
        """Give memory and workers back. Safe to call twice."""


@dataclass(frozen=True)
class ScoreRequest:
    """One completion to be scored."""

    prompt: str
    """Content of the prompt's last message."""
    completion: str
    """The answer: text without special tokens, without the thought before it and the chat template's frame. Empty where
    the thought was cut off."""
    prompt_ids: tuple[int, ...] = ()
    """Token ids of the whole prompt as the policy saw it; empty outside a run."""
    completion_ids: tuple[int, ...] = ()
    """Token ids of the completion; empty outside a run."""
    answer: str | None = None
    """Gold answer, where the record has one."""
    meta: dict[str, Any] = field(default_factory=dict)
    """`meta` of the record; its unread columns are under `extra`."""
    thought: str = ""
    """What the completion thinks before it answers, without its marks; empty where it does not."""
    answer_at: int = 0
    """Place of the answer's first token in `completion_ids`; thought and frame stand before it."""
    messages: tuple[dict[str, Any], ...] = ()
    """The whole prompt as chat templates take it: `role`, `content` and where there are any `tool_calls`,
    `reasoning_content`; empty outside a run."""
    tools: tuple[str, ...] = ()
    """Tools that the prompt offers, each the JSON schema of a function."""


@dataclass(frozen=True)
class Score:
    """What a scorer says of one completion. An error is never a zero."""

    value: float | None
    """Finite; None when the scorer failed."""
    error: str | None = None
    """Why there is no value."""
    parts: dict[str, float] = field(default_factory=dict)
    """Named components, e.g. the members of an ensemble and their `spread`."""
    text: str = ""
    """Why, in words, of a scorer that says so."""


class Scorer(Protocol):
    """A reward model at work. Built by `build(config, context)` of its module; see RewardSpec."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One Score for each request, in order. Where it raises, core asks for the requests one by one,
        and each that raises again has an error Score."""


@dataclass
class LossOutput:
    """Loss of one micro-batch, already divided by the whole step's denominator, so that micro-batches add up."""

    loss: torch.Tensor
    """float32 [], with its graph."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Summed over the micro-batches of an update, averaged over the updates of a step that have them; no prefix."""
    peaks: dict[str, float] = field(default_factory=dict)
    """Metrics of which the largest counts, over all micro-batches of the step."""


@dataclass(frozen=True)
class Limit:
    """A metric that may not grow beyond a setting. It is looked at when it has been summed over all micro-batches and
    processes, so each of them decides alike."""

    metric: str
    """Name as in LossOutput.metrics or Batch.metrics."""
    most: float
    setting: str
    """Key of the setting that gives `most`, for the message."""

    def exceeded(self, metrics: Mapping[str, float]) -> str:
        """What is exceeded, in words; empty where nothing is."""
        value = metrics.get(self.metric)
        if value is None or value <= self.most:
            return ""
        return f"{self.metric} is {value:.3g}, over {self.setting}={self.most}"


@dataclass
class Batch(Generic[M]):
    """One step's work: updates in order, each a list of micro-batches whose losses add up to one optimizer step."""

    updates: list[list[M]]
    metrics: dict[str, float] = field(default_factory=dict)
    """Known before the update, e.g. reward means."""
    tokens: int = 0
    """Real tokens that go through the policy."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Rows for the sample table."""
    skip_rest: Limit | None = None
    """The step's remaining updates are left out once an update exceeds it."""
    stop: Limit | None = None
    """The run ends after this step when its metrics exceed it."""


@dataclass
class Evaluation:
    """What a held-out evaluation found."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Names without prefix; `score` is the headline where it exists, else `reward`, else `heldout_loss`."""
    items: list[float | None] = field(default_factory=list)
    """Score of each held-out item, for intervals; None where an item could not be scored."""
    headline: str = ""
    """What people call the headline metric; empty takes the usual name."""
    requests: list[ScoreRequest] = field(default_factory=list)
    """The completions that were scored: `eval.metrics` over completions are taken of them."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Rows for the sample table."""


@dataclass(frozen=True)
class Stop:
    """What an observer returns from `on_step_end` or `on_eval_end` so that the run ends after this step. Its plugin
    must answer `key_parts`, because the result depends on it."""

    reason: str
    """Why, in words."""


@dataclass(frozen=True)
class Work:
    """What a stage does with each record beside one forward and backward pass, for the plan's estimate."""

    completions: int = 1
    """Completions that are sampled for a record."""
    new_tokens: int = 0
    """Longest of these in tokens; 0 where nothing is sampled."""
    passes: int = 1
    """Times that a step's examples are trained on."""


@dataclass
class Section:
    """A plugin's part of the report, for both of its forms."""

    title: str
    """Heading, plain text."""
    html: str
    """Fragment for report.html, taken as it is: escape your own texts, or give them to `html_table`."""
    markdown: str
    """The same for report.md, see `markdown_table`."""
    order: int = 100
    """Sections with a smaller number stand before others."""
