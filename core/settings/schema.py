"""The typed configuration: one dataclass a part, one docstring line with its unit a field. Torch-free.

Defaults live here and in the stage dataclasses of the plugins, nowhere else; YAML files are presets.
`__post_init__` checks what one dataclass can see; rules across parts belong to the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from core.settings.data_schema import DataConfig
from core.settings.rules import MISSING, require
from core.settings.study_schema import StudyConfig
from core.types import Work


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


class Rows(str, Enum):
    """How sequences go through a model."""

    auto = "auto"
    """Packed rows where they give what the plain model gives, else padded rows."""
    packed = "packed"
    """Many sequences in one row without padding; refused where the plain model gives something else."""
    padded = "padded"
    """One sequence a row, padded to the longest."""
    single = "single"
    """One sequence at a time."""


class Schedule(str, Enum):
    """Shape of the learning rate after warm-up."""

    constant = "constant"
    """The peak to the end."""
    linear = "linear"
    """Straight down to 0 just after the last step."""
    cosine = "cosine"
    """Half a cosine wave down to 0 just after the last step."""


class Order(str, Enum):
    """Which examples stand together in a step, and when they come."""

    shuffled = "shuffled"
    """A fresh shuffle for each epoch."""
    grouped = "grouped"
    """Shuffled, with examples of like length in one step."""
    curriculum = "curriculum"
    """From short to long in the first epoch, shuffled after it."""


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
    target_tokens: int | None = None
    """Train until so many target tokens were seen, whatever `epochs` says; `max_steps` wins. For comparing methods
    whose targets differ in length."""
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
    max_grad_norm: float = 1.0
    """Global gradient norm is clipped to this; 0 switches clipping off."""
    eval_every_steps: int = 0
    """Held-out evaluation every so many steps; 0 means at the start and the end only."""
    save_every_steps: int = 20
    """A checkpoint every so many steps, and after the last one; 0 means none but that of an interrupted run."""
    keep_checkpoints: int = 2
    """Checkpoints kept; the newest ones."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, "stage.epochs", "> 0", self.epochs)
        require(self.max_steps is None or self.max_steps > 0, "stage.max_steps", "> 0", self.max_steps)
        require(self.target_tokens is None or self.target_tokens > 0, "stage.target_tokens", "> 0", self.target_tokens)
        require(self.batch_size > 0, "stage.batch_size", "> 0", self.batch_size)
        require(self.micro_batch_tokens > 0, "stage.micro_batch_tokens", "> 0", self.micro_batch_tokens)
        require(self.lr > 0, "stage.lr", "> 0", self.lr)
        require(0 <= self.warmup_frac <= 1, "stage.warmup_frac", "between 0 and 1", self.warmup_frac)
        require(self.weight_decay >= 0, "stage.weight_decay", ">= 0", self.weight_decay)
        require(self.max_grad_norm >= 0, "stage.max_grad_norm", ">= 0", self.max_grad_norm)
        require(self.eval_every_steps >= 0, "stage.eval_every_steps", ">= 0", self.eval_every_steps)
        require(self.save_every_steps >= 0, "stage.save_every_steps", ">= 0", self.save_every_steps)
        require(self.keep_checkpoints >= 1, "stage.keep_checkpoints", ">= 1", self.keep_checkpoints)

    def files(self) -> list[str]:
        """Files whose content the stage's result depends on, beside the data; their hashes go into the key."""
        return []

    def work(self) -> Work:
        """What the stage does with each record, for the plan's estimate of tokens and time."""
        return Work()


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
    rows: Rows = Rows.auto
    """How sequences go through the model; every road gives the same numbers, packed rows are the fastest."""

    def __post_init__(self) -> None:
        require(self.max_length > 1, "model.max_length", "> 1", self.max_length)


@dataclass
class PeftConfig:
    """Which parameters train: all of them (`none`) or an adapter of the peft library."""

    method: str = "none"
    """`none`, a PEFT method by its peft name (`lora`, `ia3`, `vera` …), or a method of a plugin."""
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

    @property
    def title(self) -> str:
        """The method as people call it."""
        return self.method


@dataclass
class ShapedPeftConfig(PeftConfig):
    """Settings of a plugin's method. `method` is the method of peft that it stands on, whose rules and files it has."""

    shaped_by: str = ""
    """Name of the plugin's method."""
    owner: str = ""
    """The plugin and its version, so that the artifact's key knows them."""

    @property
    def title(self) -> str:
        """The method as people call it."""
        return f"{self.shaped_by} ({self.method})"


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
class OptimizerConfig:
    """What every optimizer needs; an optimizer's own dataclass extends it. Learning rate, schedule, weight decay and
    clipping are settings of the stage."""

    name: str = ""
    """Optimizer name; set by the registry."""


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
    metrics: list[Any] = field(default_factory=list)
    """Further measures at each evaluation, e.g. `[distinct, {name: scored, scorer: numeric}]`."""

    def __post_init__(self) -> None:
        require(self.max_items >= 0, "eval.max_items", ">= 0", self.max_items)
        require(self.max_new_tokens > 0, "eval.max_new_tokens", "> 0", self.max_new_tokens)


@dataclass
class MetricConfig:
    """What every metric needs; a metric's own dataclass extends it."""

    name: str = ""
    """Metric name, as in `eval.metrics=[{name: …}]`."""


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
    """A whole run. `stage`, `reward`, `judge`, `rollout`, `optimizer`, `tracker` hold the chosen ones' settings,
    `upstream` those of stages before."""

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
    optimizer: Any = MISSING
    tracker: Any = MISSING
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    """Arms that the command `study` compares; a run of its own does not read it."""
    data_dir: str = "data"
    """Folder with the public files that experiments name."""
    runs_dir: str = "runs"
    """Folder under which every run gets its own."""
    group: str | None = None
    """Name that ties runs together in a tracker; unset takes the run's own time stamp."""
    dry_run: bool = False
    """Print the plan and exit."""
    reuse: bool = True
    """Take finished, verified artifacts and interrupted runs with an equal key; false starts anew."""
