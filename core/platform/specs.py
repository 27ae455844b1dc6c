"""What a plugin registers: names, typed configs and import paths, never the heavy code itself. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.settings.data_schema import TransformConfig
from core.settings.schema import MetricConfig, OptimizerConfig, RewardConfig, RolloutConfig, StageConfig, TrackerConfig

ROLES = ("policy", "reference", "reward_model", "value_model")
SCHEMAS = ("sft", "preference", "prompts", "text", "corpus", "feedback")


@dataclass(frozen=True)
class StageSpec:
    """A stage, or one algorithm of a stage. `impl` is "package.module:Class", a core.torch_api.Stage, imported only
    when the stage was chosen and its config accepted; one instance is made for each run."""

    name: str
    """What the user types after `stage=`."""
    config: type[StageConfig]
    """Its fields are `stage.<field>`."""
    impl: str
    data: str
    """Schema of the records it trains on: sft, preference, prompts, text, corpus or feedback."""
    summary: str = ""
    roles: tuple[str, ...] = ("policy",)
    """Models it needs: policy, reference, reward_model, value_model."""
    algorithm: str = ""
    """Name of the variant; empty for a stage without variants."""
    default: bool = False
    """True for the variant that `stage=` alone takes."""
    makes: str = "policy"
    """Kind of model that its artifact holds, "policy" or "reward_model"."""
    after: dict[str, str] = field(default_factory=dict)
    """Stages that the plan puts before it where the config names no model for a role, e.g.
    {"policy": "sft", "reward_model": "reward"}."""
    rollouts: bool = False
    """Its steps sample from the policy and are scored by the run's reward."""
    builds: bool = False
    """It makes its examples with a rollout engine before the first step (the hook `make_data`), judged by the run's
    judge."""
    requires: tuple[str, ...] = ()
    paper: str = ""
    """Where the method comes from."""

    @property
    def samples(self) -> bool:
        """Whether it needs a rollout engine at all."""
        return self.rollouts or self.builds


@dataclass(frozen=True)
class RewardSpec:
    """A reward model, which is a judge too: see RewardConfig.threshold.

    `impl` is "package.module:build"; build(config, context) returns a Scorer, where `context` has `parts` (the models
    and engines of the run, or None), `device` and `dtype`.
    """

    name: str
    config: type[RewardConfig]
    impl: str
    summary: str = ""
    isolated: bool = False
    """Runs in worker processes that can be killed at `timeout_s` (for checks that may hang or crash)."""
    answers: str = ""
    """Kind of answer it compares with, "number" or "text": `eval.scorer=auto` goes by it."""
    needs_answer: bool = False
    """Records must carry an `answer`."""
    needs_model: bool = False
    """Scores with the reward model of the run's `reward_model` role."""
    requires: tuple[str, ...] = ()
    diagnose: str = ""
    """ "package.module:function" that returns what cannot be done on this machine, a line each; `doctor` asks it."""


@dataclass(frozen=True)
class EngineSpec:
    """A rollout engine. `impl` is "package.module:build"; build(config, start, module) returns a RolloutEngine.

    `start` is the core.torch_api.Start of the policy, `module` the policy itself, a transformers module or PeftModel.
    """

    name: str
    config: type[RolloutConfig]
    impl: str
    summary: str = ""
    shares_policy: bool = False
    """Samples from the trainer's own weights: nothing to start, nothing to sync; used for occasional evaluation."""
    priority: int = 0
    """`rollout=auto` takes the importable engine with the highest."""
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer. `impl` is "package.module:build"; build(config, groups) returns a torch.optim.Optimizer.

    `groups` are torch's: dicts with `params` (fp32 parameters), `lr` (the peak) and `weight_decay`. The optimizer must
    keep its state by parameter, as tensors and numbers; the learning rate, clipping and checkpoints are core's. One
    training step may call `step()` several times, each time with gradients of other parameters.
    """

    name: str
    config: type[OptimizerConfig]
    impl: str
    summary: str = ""
    state_bytes: float = 8.0
    """Bytes of state for each trained parameter, for the plan's estimate of memory."""
    requires: tuple[str, ...] = ()


METRIC_SUBJECTS = ("completions", "models")


@dataclass(frozen=True)
class MetricSpec:
    """A measure taken at each held-out evaluation. `impl` is "package.module:build"; build(config, run) returns a
    function, called without gradients and by what it measures:

    completions: function(requests), a core.api.ScoreRequest for each held-out prompt that was answered.
    models: function(models, data), what the stage's own `evaluate` gets.

    It returns a number, told as `eval/<name>`, or numbers by part, told as `eval/<name>/<part>`.
    """

    name: str
    config: type[MetricConfig]
    impl: str
    over: str
    """What it measures: "completions" or "models"."""
    summary: str = ""
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class PeftMethodSpec:
    """A method of parameter-efficient tuning that stands on one of peft's own.

    `impl` is "package.module:shape"; shape(module, config) is called once on the model with its fresh adapter, and may
    freeze parameters or set their starting values, so long as the model's output stays that of the start. The
    artifact is an adapter of the method `base`, which peft loads without the plugin.
    """

    name: str
    base: str
    """Name of the method of peft, e.g. `lora`."""
    impl: str
    summary: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of that method's config; the user's `peft.options` go before them."""
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrackerSpec:
    """A tracker. `impl` is "package.module:Class"; Class(config) is registered for the observer hooks."""

    name: str
    config: type[TrackerConfig]
    impl: str
    summary: str = ""
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSourceSpec:
    """A named data source. `impl` is "package.module:write"; write(folder, seed) fills a folder with sft.jsonl,
    preference.jsonl, prompts.jsonl and heldout.jsonl, or those of them that it has."""

    name: str
    impl: str
    version: str
    """Part of the cache key; raise it when the rows change."""
    summary: str = ""


TRANSFORM_KINDS = ("filter", "dedup", "augment", "check")


@dataclass(frozen=True)
class TransformSpec:
    """A step of set building. `impl` is "package.module:build", torch-free; build(config) returns a function, by kind:

    filter: function(record) -> str, why the record does not stay; empty where it does. Judges training records, and
        held-out records that were drawn from the same rows.
    dedup, augment, check: function(records, context) -> Transformed (see core.data.transforms). Gets training records
        alone; a dedup or check may drop them, an augment may add some.
    """

    name: str
    config: type[TransformConfig]
    impl: str
    kind: str
    """"filter", "dedup", "augment" or "check"."""
    version: str
    """Part of the artifact key; raise it when the outcome changes."""
    summary: str = ""
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReaderSpec:
    """A file format. `impl` is "package.module:read"; read(file, path) takes a binary file that can be rewound, already
    unpacked where it was compressed, and yields a core.api.Row for every row, also for those that it cannot read."""

    name: str
    suffixes: tuple[str, ...]
    """Endings of the files that it reads, in lower case and with the dot."""
    impl: str
    summary: str = ""
    documents: bool = False
    """A file is one text. In a folder such files are taken only where there are no others (a README is no data)."""
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class DialectSpec:
    """A way to lay out rows. Found by its `required` fields; `parse` makes the fields of one record, or a list of
    these where a row holds several, out of the values by canonical field."""

    name: str
    required: Mapping[str, Callable[[Any], bool]]
    """Canonical field to the test that its values pass."""
    parse: Callable[[Mapping[str, Any]], dict[str, Any] | list[dict[str, Any]]]
    """Raises core.api.RowError for a row that does not fit."""
    summary: str = ""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Canonical field to the columns that it is looked for in, best first, where they differ from those of
    core.data.dialects.ALIASES. Case does not matter, and a space or hyphen is an underscore."""
    optional: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    """Fields that it takes along where a column of theirs is there; a value that fails the test is a bad row."""
    named: bool = False
    """Known by the name of its prompt column alone; steps back when the user names another."""


@dataclass(frozen=True)
class CommandSpec:
    """A command, `python -m core NAME …`. `impl` is "package.module:function"; function(arguments) gets the words after
    the name and returns the exit code. Raise core.api.ConfigError for words that it cannot take."""

    name: str
    """Small letters, digits and `-`."""
    impl: str
    summary: str = ""
    requires: tuple[str, ...] = ()
    usage: str = ""
    """What may follow the name, as `NAME --help` prints it, e.g. "RUN RUN [--json]"."""


@dataclass(frozen=True)
class TextSetSpec:
    """A named set of short texts that stages draw from, e.g. directives to put before a passage."""

    name: str
    kind: str
    """What the texts are for; a stage takes sets of the kinds that it knows."""
    texts: dict[str, list[str]]
    """Category to its texts, none of them empty."""
    summary: str = ""
