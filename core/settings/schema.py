"""The typed configuration: one dataclass a part, one docstring line with its unit a field. Torch-free.

Defaults live here and in the stage dataclasses of the plugins, nowhere else; YAML files are presets.
`__post_init__` checks what one dataclass can see; rules across parts belong to the plan.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from core.errors import ConfigError
from core.settings.data_schema import DataConfig
from core.settings.ranges import MANY, Checked, number
from core.settings.rules import MISSING
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
class StageConfig(Checked):
    """What every stage's training loop needs; a stage's own dataclass extends it."""

    name: str = ""
    """Stage name; set by the registry."""
    algorithm: str = ""
    """Variant of the stage; set by the registry, empty for a stage without variants."""
    epochs: float = number(1.0, above=0, at_most=100_000)
    """Passes over the training records; `max_steps` wins when set."""
    max_steps: int | None = number(None, above=0, at_most=MANY)
    """Optimizer steps (rollout iterations for online stages)."""
    target_tokens: int | None = number(None, above=0)
    """Train until so many target tokens were seen, whatever `epochs` says; `max_steps` wins. For comparing methods
    whose targets differ in length."""
    batch_size: int = number(16, above=0, at_most=MANY)
    """Records (pairs, prompts) consumed by one step, over all processes."""
    order: Order = Order.shuffled
    """Order of the examples: `shuffled`, `grouped` by length, or `curriculum` from short to long."""
    micro_batch_tokens: int = number(2048, above=0, at_most=MANY)
    """Most tokens in one forward pass; the rest of the step is accumulated."""
    lr: float = number(2e-5, above=0, at_most=100)
    """Peak learning rate."""
    schedule: Schedule = Schedule.linear
    """Shape of the learning rate after warm-up."""
    warmup_frac: float = number(0.05, at_least=0, at_most=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = number(0.0, at_least=0, at_most=100)
    """Decoupled weight decay on matrices."""
    max_grad_norm: float = number(1.0, at_least=0)
    """Global gradient norm is clipped to this; 0 switches clipping off."""
    eval_every_steps: int = number(0, at_least=0, at_most=MANY)
    """Held-out evaluation every so many steps; 0 means at the start and the end only."""
    save_every_steps: int = number(20, at_least=0, at_most=MANY)
    """A checkpoint every so many steps, and after the last one; 0 means none but that of an interrupted run."""
    keep_checkpoints: int = number(2, at_least=1, at_most=MANY)
    """Checkpoints kept; the newest ones."""

    def files(self) -> list[str]:
        """Files whose content the stage's result depends on, beside the data; their hashes go into the key."""
        return []

    def work(self) -> Work:
        """What the stage does with each record, for the plan's estimate of tokens and time."""
        return Work()


@dataclass
class ModelConfig(Checked):
    """Where the model comes from and how its text is delimited."""

    source: str = MISSING
    """Hub id, local folder, folder of a preftune run, or `package:DISTRIBUTION/FILE.gguf`."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    trust_remote_code: str | None = None
    """Commit hash, 40 digits, whose remote code may run; unset (or `false`) means no remote code at all."""
    eos_token: str | None = None
    """End-of-turn token, where the tokenizer names a wrong one."""
    pad_token: str | None = None
    """Padding token, where the tokenizer names none."""
    chat_template: str | None = None
    """`chatml`, `alpaca`, or a file with a Jinja chat template, in place of the tokenizer's own."""
    max_length: int = number(1024, above=1, at_most=MANY)
    """Longest sequence in tokens."""
    rows: Rows = Rows.auto
    """How sequences go through the model; every road gives the same numbers, packed rows are the fastest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trust_remote_code = _commit(self.trust_remote_code)


_NO = ("", "0", "false", "n", "no", "none", "null", "off")
"""What people type to let no remote code run."""


def _commit(value: str | None) -> str | None:
    """The commit that a setting names, or None for no. Raises ConfigError for a yes, a branch, a tag."""
    text = str(value or "").strip().lower()
    if text in _NO:
        return None
    if not re.fullmatch(r"[0-9a-f]{40}", text):
        raise ConfigError(
            f"model.trust_remote_code takes the commit whose code may run, not '{value}'",
            "model.trust_remote_code",
            "give all 40 digits of the commit whose code you have read, or leave it unset",
        )
    return text


@dataclass
class PeftConfig(Checked):
    """Which parameters train: all of them (`none`) or an adapter of the peft library."""

    method: str = "none"
    """`none`, a PEFT method by its peft name (`lora`, `ia3`, `vera` …), or a method of a plugin."""
    r: int | None = number(None, above=0, at_most=65536)
    """Rank, where the method has one; the method's own default when unset."""
    alpha: float | None = number(None, above=0, at_most=1_000_000)
    """Scaling numerator, where the method has one."""
    dropout: float | None = number(None, at_least=0, below=1)
    """Adapter dropout, where the method has one."""
    targets: list[str] | None = None
    """Names of adapted modules; `[all-linear]` takes every linear layer but the head."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any further field of the method's peft config, e.g. `peft.options.use_dora=true`."""
    merge: bool = False
    """Also write the merged full model into the artifact."""

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
class RewardConfig(Checked):
    """What every reward model needs; a reward model's own dataclass extends it."""

    name: str = ""
    """Reward model name; set by the registry."""
    timeout_s: float = number(10.0, above=0, at_most=86400)
    """Wall-clock limit for one completion, in seconds; over it the score counts as an error."""
    threshold: float = number(0.5)
    """As a judge: a completion counts as right from this score on. As a reward it is not read."""

    def check(self) -> None:
        """Raise ConfigError for what has no default and was not set. Called on the chosen reward model only."""

    def uses(self) -> list[tuple[str, dict[str, Any]]]:
        """Other reward models that this one asks: name and parameters of each."""
        return []


@dataclass
class RolloutConfig(Checked):
    """What every rollout engine needs; an engine's own dataclass extends it."""

    name: str = ""
    """Engine name; set by the registry. `auto` takes vllm where it imports, else transformers."""
    sync_tolerance: float = number(0.0, at_least=0)
    """Largest accepted mean difference in nats of a token's log-probability between engine and trainer after a
    weight sync; 0 takes the measured bound for the number format."""


@dataclass
class OptimizerConfig(Checked):
    """What every optimizer needs; an optimizer's own dataclass extends it. Learning rate, schedule, weight decay and
    clipping are settings of the stage."""

    name: str = ""
    """Optimizer name; set by the registry."""


@dataclass
class TrackerConfig(Checked):
    """What every tracker needs; a tracker's own dataclass extends it."""

    name: str = ""
    """Tracker name; set by the registry."""


@dataclass
class RuntimeConfig(Checked):
    """Device, number format, randomness."""

    device: Device = Device.auto
    """auto takes cuda where there is one."""
    dtype: Dtype = Dtype.auto
    """auto computes in bf16; the optimizer always keeps fp32 master weights."""
    seed: int = number(17, at_least=0, below=2**32)
    """One seed for weights, order, sampling and engines."""
    threads: int | None = number(None, above=0, at_most=1024)
    """CPU threads; unset takes all cores."""


@dataclass
class EvalConfig(Checked):
    """How the held-out part is scored before and after."""

    scorer: str = "auto"
    """Reward model that gives the true score; auto takes `answer` where records carry one, else the run's reward."""
    max_items: int = number(100, at_least=0, at_most=MANY)
    """Held-out prompts that are generated for; 0 switches generation off."""
    max_new_tokens: int = number(48, above=0, at_most=MANY)
    """Longest completion in tokens."""
    samples: int = number(8, at_least=0, at_most=MANY)
    """Completions kept in samples.jsonl, before and after."""
    metrics: list[Any] = field(default_factory=list)
    """Further measures at each evaluation, e.g. `[distinct, {name: scored, scorer: numeric}]`."""


@dataclass
class MetricConfig(Checked):
    """What every metric needs; a metric's own dataclass extends it."""

    name: str = ""
    """Metric name, as in `eval.metrics=[{name: …}]`."""


@dataclass
class RetentionConfig(Checked):
    """What is measured before and after training beside the task: what the model may have forgotten."""

    general: bool = True
    """Loss and KL to the start model on a few short general dialogues that come with preftune."""
    texts: str | None = None
    """File of raw text on which the loss is measured."""
    choices: list[str] = field(default_factory=list)
    """Files of multiple-choice questions (JSON Lines or MMLU's CSV), or folders of them."""
    max_items: int = number(100, above=0, at_most=MANY)
    """Most questions of one file or folder, and most pieces of text."""
    piece_tokens: int = number(256, above=1, at_most=MANY)
    """Length of a piece of text in tokens."""


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
