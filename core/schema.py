"""The typed configuration: one dataclass a part, one docstring line with its unit a field. Torch-free.

Defaults live here and in the stage dataclasses of the plugins, nowhere else; YAML files are presets.
`__post_init__` checks what one dataclass can see; rules across parts belong to the plan.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from core.errors import ConfigError


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raise ConfigError("<key> must be <rule>, got <value>") unless `condition` holds."""
    if not condition:
        raise ConfigError(f"'{key}' must be {rule}, got {value!r}", mend=f"set {key}=… to a value that is {rule}")


def check_regex(key: str, pattern: str) -> None:
    """Raise ConfigError naming `key` unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"'{key}' must be a regular expression, got {pattern!r}: {error}",
            mend=f"correct {key} (syntax of Python's re module)",
        ) from error


class Dtype(str, Enum):
    """Number format of weights in the forward and backward pass."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Device(str, Enum):
    """Where the models live."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Quant(str, Enum):
    """Storage of frozen base weights (bitsandbytes)."""

    none = "none"
    nf4 = "nf4"
    int8 = "int8"


class Schedule(str, Enum):
    """Shape of the learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Mixing(str, Enum):
    """How the sources of a mixture are weighed."""

    proportional = "proportional"
    fixed = "fixed"
    temperature = "temperature"


class Order(str, Enum):
    """Which examples stand together in a step, and when they come."""

    shuffled = "shuffled"
    """A fresh shuffle for each epoch."""
    grouped = "grouped"
    """Shuffled, with examples of like length in one step."""
    curriculum = "curriculum"
    """From short to long in the first epoch, shuffled after it."""


class Choice(str, Enum):
    """Whether something is done."""

    auto = "auto"
    always = "always"
    never = "never"


@dataclass
class StageConfig:
    """What every stage's training loop needs; a stage's own dataclass extends it."""

    name: str = ""
    """Stage name; set by the registry."""
    algorithm: str = ""
    """Variant of the stage; set by the registry, empty for a stage without variants."""
    epochs: float = 1.0
    """Passes over the training records; `max_steps` wins when set."""
    max_steps: int | None = None
    """Optimizer steps (rollout iterations for online stages)."""
    batch_size: int = 16
    """Records (pairs, prompts) consumed by one step, over all processes."""
    order: Order = Order.shuffled
    """Order of the examples: `shuffled`, `grouped` by length, or `curriculum` from short to long."""
    micro_batch_tokens: int = 2048
    """Most tokens in one forward pass; the rest of the step is accumulated."""
    lr: float = 2e-5
    """Peak learning rate."""
    schedule: Schedule = Schedule.linear
    """Shape of the learning rate after warm-up."""
    warmup_frac: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay on matrices."""
    adam_beta1: float = 0.9
    """First moment decay."""
    adam_beta2: float = 0.95
    """Second moment decay."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: float = 1.0
    """Global gradient norm is clipped to this; 0 switches clipping off."""
    eval_every_steps: int = 0
    """Held-out evaluation every so many steps; 0 means at the start and the end only."""
    save_every_steps: int = 20
    """A checkpoint every so many steps; 0 means none."""
    keep_checkpoints: int = 2
    """Checkpoints kept; the newest ones."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, "stage.epochs", "> 0", self.epochs)
        require(self.max_steps is None or self.max_steps > 0, "stage.max_steps", "> 0", self.max_steps)
        require(self.batch_size > 0, "stage.batch_size", "> 0", self.batch_size)
        require(self.micro_batch_tokens > 0, "stage.micro_batch_tokens", "> 0", self.micro_batch_tokens)
        require(self.lr > 0, "stage.lr", "> 0", self.lr)
        require(0 <= self.warmup_frac <= 1, "stage.warmup_frac", "between 0 and 1", self.warmup_frac)
        require(self.weight_decay >= 0, "stage.weight_decay", ">= 0", self.weight_decay)
        require(0 <= self.adam_beta1 < 1, "stage.adam_beta1", "in [0, 1)", self.adam_beta1)
        require(0 <= self.adam_beta2 < 1, "stage.adam_beta2", "in [0, 1)", self.adam_beta2)
        require(self.adam_eps > 0, "stage.adam_eps", "> 0", self.adam_eps)
        require(self.max_grad_norm >= 0, "stage.max_grad_norm", ">= 0", self.max_grad_norm)
        require(self.eval_every_steps >= 0, "stage.eval_every_steps", ">= 0", self.eval_every_steps)
        require(self.save_every_steps >= 0, "stage.save_every_steps", ">= 0", self.save_every_steps)
        require(self.keep_checkpoints >= 1, "stage.keep_checkpoints", ">= 1", self.keep_checkpoints)

    def files(self) -> list[str]:
        """Files whose content the stage's result depends on, beside the data; their hashes go into the key."""
        return []


@dataclass
class ModelConfig:
    """Where the model comes from and how its text is delimited."""

    source: str = MISSING
    """Hub id, local folder, folder of a preftune run, or `package:DISTRIBUTION/FILE.gguf`."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    trust_remote_code: str | None = None
    """Commit hash whose remote code may run; unset means no remote code at all."""
    eos_token: str | None = None
    """End-of-turn token, where the tokenizer names a wrong one."""
    pad_token: str | None = None
    """Padding token, where the tokenizer names none."""
    chat_template: str | None = None
    """`chatml`, `alpaca`, or a file with a Jinja chat template, in place of the tokenizer's own."""
    max_length: int = 1024
    """Longest sequence in tokens."""

    def __post_init__(self) -> None:
        require(self.max_length > 1, "model.max_length", "> 1", self.max_length)


@dataclass
class PeftConfig:
    """Which parameters train: all of them (`none`) or an adapter of the peft library."""

    method: str = "none"
    """`none` or a PEFT method by its peft name (`lora`, `ia3`, `vera` …)."""
    r: int | None = None
    """Rank, where the method has one; the method's own default when unset."""
    alpha: float | None = None
    """Scaling numerator, where the method has one."""
    dropout: float | None = None
    """Adapter dropout, where the method has one."""
    targets: list[str] | None = None
    """Names of adapted modules; `[all-linear]` takes every linear layer but the head."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any further field of the method's peft config, e.g. `peft.options.use_dora=true`."""
    merge: bool = False
    """Also write the merged full model into the artifact."""

    def __post_init__(self) -> None:
        require(self.r is None or self.r > 0, "peft.r", "> 0", self.r)
        require(self.dropout is None or 0 <= self.dropout < 1, "peft.dropout", "in [0, 1)", self.dropout)


@dataclass
class TransformConfig:
    """What every record transform needs; a transform's own dataclass extends it."""

    name: str = ""
    """Transform name, as in `data.transforms=[{name: …}]`."""


@dataclass
class SourceConfig:
    """One source of a mixture; its checks are the mixture's, which knows its name."""

    path: str | None = None
    """File, folder or hub id of the source's records."""
    source: str | None = None
    """Name of a registered data source, in place of `path`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Canonical field to column, as in `data.columns`."""
    dialect: str | None = None
    """Name of the layout of its rows, as in `data.dialect`."""
    cap: int | None = None
    """Most training records that count as there, drawn by the seed; unset takes all."""
    rate: float | None = None
    """Weight of the source beside the other sources' rates; `mixing=fixed` alone asks for it."""


@dataclass
class DataConfig:
    """Which records are used."""

    source: str | None = None
    """Name of a registered data source (a generator), e.g. `demo`."""
    path: str | None = None
    """File, folder or pattern of files, or a dataset of the hub as `owner/name:split`; wins over `source`. A folder may
    hold sft.jsonl, preference.jsonl, prompts.jsonl, heldout.jsonl; any other file serves every stage whose schema can
    be read from its rows."""
    columns: dict[str, str] = field(default_factory=dict)
    """Canonical field to column of the file, e.g. `{prompt: question}`; found from the rows when unset."""
    dialect: str | None = None
    """Name of the layout of the rows (see docs/data.md); found from the rows when unset."""
    heldout_frac: float = 0.1
    """Share of the records held out when the data brings no held-out part."""
    heldout_max: int = 200
    """Most records held out."""
    limit: int | None = None
    """Use only the first so many records."""
    max_bad_frac: float = 0.05
    """Share of unreadable rows above which the run stops."""
    system: str | None = None
    """System message put before prompts that have none."""
    seed: int | None = None
    """Draws held-out part, folds, order, mixture and augmentation; unset takes `runtime.seed`."""
    shuffle: bool = False
    """Put the training records in an order drawn by the seed before `limit` takes the first."""
    folds: int | None = None
    """Number of parts of a cross-validation; one of them is held out in place of `heldout_frac`."""
    fold: int | None = None
    """Which of the `folds` is held out, counted from 1."""
    mixture: dict[str, SourceConfig] = field(default_factory=dict)
    """Sources by name, e.g. `data.mixture.faq.path=faq.csv`, in place of `path`; wins over `source`."""
    mixing: Mixing = Mixing.proportional
    """Weight of a source: its size up to `mix_rate_max`, its `rate`, or its size to the power 1 / `mix_temperature`."""
    mix_size: int | None = None
    """Training records drawn; unset takes as many as can be had without repeating one."""
    mix_rate_max: int | None = None
    """Size above which a source gains no weight (3000 in FLAN); unset has no bound."""
    mix_temperature: float = 2.0
    """Temperature of `mixing=temperature`: 1 is proportional, large values make the sources equal."""
    transforms: list[Any] = field(default_factory=list)
    """Filters, de-duplication, augmentation and checks in their order, e.g. `[{name: length, min_chars: 20}]`."""
    stream: Choice = Choice.auto
    """Keep records on disk instead of in memory (schemas `sft` and `text`); auto does so for files over 256 MB."""
    token_cache: Choice = Choice.auto
    """Keep token ids on disk, found again by their content; auto does so for streamed data and over 50000 records."""

    def __post_init__(self) -> None:
        require(0 <= self.heldout_frac < 1, "data.heldout_frac", "in [0, 1)", self.heldout_frac)
        require(self.heldout_max >= 0, "data.heldout_max", ">= 0", self.heldout_max)
        require(self.limit is None or self.limit > 0, "data.limit", "> 0", self.limit)
        require(0 <= self.max_bad_frac <= 1, "data.max_bad_frac", "between 0 and 1", self.max_bad_frac)
        require(self.folds is None or self.folds > 1, "data.folds", "> 1", self.folds)
        if (self.folds is None) != (self.fold is None):
            lacking = "data.fold" if self.fold is None else "data.folds"
            raise ConfigError("data.folds and data.fold go together", "data", f"set {lacking}=… too")
        if self.folds is not None:
            require(1 <= (self.fold or 0) <= self.folds, "data.fold", f"between 1 and {self.folds}", self.fold)
        self._check_mixture()

    def _check_mixture(self) -> None:
        require(self.mix_size is None or self.mix_size > 0, "data.mix_size", "> 0", self.mix_size)
        require(self.mix_rate_max is None or self.mix_rate_max > 0, "data.mix_rate_max", "> 0", self.mix_rate_max)
        require(self.mix_temperature >= 1, "data.mix_temperature", ">= 1", self.mix_temperature)
        if not self.mixture:
            if self.mix_size is not None or self.mix_rate_max is not None:
                raise ConfigError(
                    "data.mix_size and data.mix_rate_max have no effect without sources", "data.mixture",
                    "name the sources: data.mixture.NAME.path=…",
                )  # fmt: skip
            return
        if self.path is not None:
            mend = "leave data.path out, or make it a source: data.mixture.NAME.path=…"
            raise ConfigError("data.path and data.mixture both say where records come from", "data", mend)
        if self.columns:
            mend = "name them by source: data.mixture.NAME.columns={…}"
            raise ConfigError("data.columns does not say which source's columns it names", "data.columns", mend)
        if self.dialect is not None:
            mend = "name it by source: data.mixture.NAME.dialect=…"
            raise ConfigError("data.dialect does not say which source's layout it names", "data.dialect", mend)
        for name, source in self.mixture.items():
            key = f"data.mixture.{name}"
            if (source.path is None) == (source.source is None):
                said = "neither path nor source" if source.path is None else "both path and source"
                others = ", ".join(other for other in self.mixture if other != name)
                where = f"the other sources are {others}" if others else ""
                raise ConfigError(f"'{key}' has {said}", where, f"set {key}.path=FILE, and nothing else beside it")
            require(source.cap is None or source.cap > 0, f"{key}.cap", "> 0", source.cap)
            if self.mixing is Mixing.fixed:
                require(source.rate is not None and source.rate > 0, f"{key}.rate", "> 0 (mixing=fixed)", source.rate)
            elif source.rate is not None:
                mend = f"set data.mixing=fixed, or leave {key}.rate out"
                raise ConfigError(f"'{key}.rate' has no effect with data.mixing={self.mixing.value}", "", mend)


@dataclass
class RewardConfig:
    """What every reward model needs; a reward model's own dataclass extends it."""

    name: str = ""
    """Reward model name; set by the registry."""
    timeout_s: float = 10.0
    """Wall-clock limit for one completion, in seconds; over it the score counts as an error."""
    threshold: float = 0.5
    """As a judge: a completion counts as right from this score on. As a reward it is not read."""

    def __post_init__(self) -> None:
        require(self.timeout_s > 0, "reward.timeout_s", "> 0", self.timeout_s)
        require(math.isfinite(self.threshold), "reward.threshold", "finite", self.threshold)

    def check(self) -> None:
        """Raise ConfigError for what has no default and was not set. Called on the chosen reward model only."""

    def uses(self) -> list[tuple[str, dict[str, Any]]]:
        """Other reward models that this one asks: name and parameters of each."""
        return []


@dataclass
class RolloutConfig:
    """What every rollout engine needs; an engine's own dataclass extends it."""

    name: str = ""
    """Engine name; set by the registry. `auto` takes vllm where it imports, else transformers."""
    sync_tolerance: float = 0.0
    """Largest accepted mean difference in nats of a token's log-probability between engine and trainer after a
    weight sync; 0 takes the measured bound for the number format."""

    def __post_init__(self) -> None:
        require(self.sync_tolerance >= 0, "rollout.sync_tolerance", ">= 0", self.sync_tolerance)


@dataclass
class TrackerConfig:
    """What every tracker needs; a tracker's own dataclass extends it."""

    name: str = ""
    """Tracker name; set by the registry."""


@dataclass
class RuntimeConfig:
    """Device, number format, randomness."""

    device: Device = Device.auto
    """auto takes cuda where there is one."""
    dtype: Dtype = Dtype.auto
    """auto computes in bf16; the optimizer always keeps fp32 master weights."""
    seed: int = 17
    """One seed for weights, order, sampling and engines."""
    threads: int | None = None
    """CPU threads; unset takes all cores."""


@dataclass
class EvalConfig:
    """How the held-out part is scored before and after."""

    scorer: str = "auto"
    """Reward model that gives the true score; auto takes `answer` where records carry one, else the run's reward."""
    max_items: int = 100
    """Held-out prompts that are generated for; 0 switches generation off."""
    max_new_tokens: int = 48
    """Longest completion in tokens."""
    samples: int = 8
    """Completions kept in samples.jsonl, before and after."""

    def __post_init__(self) -> None:
        require(self.max_items >= 0, "eval.max_items", ">= 0", self.max_items)
        require(self.max_new_tokens > 0, "eval.max_new_tokens", "> 0", self.max_new_tokens)


@dataclass
class RetentionConfig:
    """What is measured before and after training beside the task: what the model may have forgotten."""

    general: bool = True
    """Loss and KL to the start model on a few short general dialogues that come with preftune."""
    texts: str | None = None
    """File of raw text on which the loss is measured."""
    choices: list[str] = field(default_factory=list)
    """Files of multiple-choice questions (JSON Lines or MMLU's CSV), or folders of them."""
    max_items: int = 100
    """Most questions of one file or folder, and most pieces of text."""
    piece_tokens: int = 256
    """Length of a piece of text in tokens."""

    def __post_init__(self) -> None:
        require(self.max_items > 0, "retention.max_items", "> 0", self.max_items)
        require(self.piece_tokens > 1, "retention.piece_tokens", "> 1", self.piece_tokens)


@dataclass
class PipelineConfig:
    """Which stages run before the named one."""

    stages: list[str] | None = None
    """Names in order; unset lets each stage ask for what it lacks."""


@dataclass
class PluginsConfig:
    """Which plugins may load. Only the command line can say it: presets are read after plugins were loaded."""

    allow: list[str] | None = None
    """Names of plugins, or of the distributions that they come from; no other is imported. Unset allows all."""
    block: list[str] = field(default_factory=list)
    """Names of plugins that are not imported."""


@dataclass
class RunConfig:
    """A whole run. `stage`, `reward`, `judge`, `rollout`, `tracker` hold the chosen ones' settings, `upstream` those of
    stages before."""

    stage: Any = MISSING
    upstream: Any = None
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    quant: Quant = Quant.none
    """Storage of frozen base weights (bitsandbytes); needs an adapter."""
    data: DataConfig = field(default_factory=DataConfig)
    reward: Any = MISSING
    judge: Any = MISSING
    rollout: Any = MISSING
    tracker: Any = MISSING
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    runs_dir: str = "runs"
    """Folder under which every run gets its own."""
    group: str | None = None
    """Name that ties runs together in a tracker; unset takes the run's own time stamp."""
    dry_run: bool = False
    """Print the plan and exit."""
    reuse: bool = True
    """Take finished, verified artifacts and interrupted runs with an equal key; false starts anew."""
