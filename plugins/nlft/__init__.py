"""Natural-language fine-tuning: token weights from a judgement in words (arXiv:2412.20382). Torch-free entry module."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from core.api import Schedule, StageConfig, StageSpec, Work, hookimpl, number, require


class Completions(str, Enum):
    """What the completion of a record is."""

    auto = "auto"
    """The model's own answer where the row brings a judgement, a gold column, spans or a label; else the gold one."""
    gold = "gold"
    own = "own"


class Arm(str, Enum):
    """What the answers are trained with."""

    nlft = "nlft"
    """Weights from the judgements."""
    sft = "sft"
    """A control on the same answers: plain likelihood of the right ones, the wrong ones left out."""
    sft_all = "sft_all"
    """A control on the same answers: plain likelihood of all of them, as if nobody had judged."""


class Annotator(str, Enum):
    """Which model's probabilities weigh the tokens."""

    frozen = "frozen"
    """The start model, once, without dropout."""
    live = "live"
    """The model in training, in every step (as in the released code)."""


class ClusterMeasure(str, Enum):
    """What joins a neighbour to a cluster when it exceeds the threshold."""

    similarity = "similarity"
    """Cosine similarity of the hidden states."""
    distance = "distance"
    """1 - cosine similarity (as in the released code): joins unlike neighbours."""


class NegativeNll(str, Enum):
    """The plain likelihood term of a wrong answer."""

    judge = "judge"
    """Of the answer under the judge's prompt, where it is what was asked for (CUT, arXiv:2312.14591)."""
    none = "none"
    misaligned = "misaligned"
    """The judge's row read at the positions of the base row (as in the released code)."""


JUDGE_SYSTEM = "Write a bad response: one that shows the weaknesses which the judgement names."
JUDGE_PROMPT = "{prompt}\n\nJudgement: {judgement}"
CORRECT_SYSTEM = "You are an expert. Consult the standard answer before you respond."
CORRECT_PROMPT = "{prompt}\n\nStandard answer: {gold}"


@dataclass
class NlftConfig(StageConfig):
    """Settings of `stage=nlft`."""

    lr: float = 5e-5
    """Peak learning rate (5e-5 with LoRA in the released code)."""
    epochs: float = 3.0
    """Passes over the answers (10 in the released code, 3 for its larger sets)."""
    batch_size: int = 4
    """Answers in one step."""
    schedule: Schedule = Schedule.cosine
    """Shape of the learning rate after warm-up."""
    warmup_frac: float = 0.1
    """Share of the steps in which the learning rate rises from 0."""

    arm: Arm = Arm.nlft
    """The method, or its control."""
    completions: Completions = Completions.auto
    """Whether a record's completion is the gold answer or the model's own."""
    gold_column: str = "gold"
    """Column with the gold answer, where the completion is the model's own."""
    judgement_column: str = "judgement"
    """Column with the judgement; an empty one says that the answer is right."""
    max_new_tokens: int = number(128, above=0, at_most=1_000_000)
    """Longest answer that the stage makes, in tokens (512 in the released code)."""
    temperature: float = number(0.3, at_least=0, at_most=100)
    """Sampling temperature of the answers."""
    build_batch: int = number(64, above=0, at_most=1_000_000)
    """Answers that are made, judged and written to the disk together."""

    judge_system: str = JUDGE_SYSTEM
    """System message of the judge's row."""
    judge_prompt: str = JUDGE_PROMPT
    """User message of the judge's row; `{prompt}` and `{judgement}` are filled in."""
    correct_system: str = CORRECT_SYSTEM
    """System message of the correct row."""
    correct_prompt: str = CORRECT_PROMPT
    """User message of the correct row; `{prompt}` and `{gold}` are filled in."""

    annotation: Annotator = Annotator.frozen
    """Whether the start model weighs the tokens once, or the model in training in every step."""
    tau: float = number(0.95, above=0, below=1)
    """A token of a right answer is salient where its probability given the gold answer exceeds this."""
    salient_power: float = number(5.0, at_least=0, at_most=1000)
    """Exponent of the salient tokens' extra weight."""
    clustered_power: float = number(0.3, at_least=0, at_most=1000)
    """Exponent of p / tau for the neighbours of salient tokens."""
    other_power: float = number(0.6, at_least=0, at_most=1000)
    """Exponent of p / tau for all other tokens of a right answer."""
    ratio: float = number(1.5, above=0)
    """A token of a wrong answer is negative where p(judge) / p(base) and p(judge) / p(correct) both exceed this."""
    min_prob: float = number(0.01, at_least=0, below=1)
    """And where p(judge) exceeds this."""
    theta: float = number(1.5)
    """Shift of the negative tokens' weight 2 sigmoid(ratio - theta) (1.1 by default in the released code)."""
    max_negative_share: float = number(0.06, at_least=0, at_most=1)
    """Above this share of negative tokens only they are trained on in a wrong answer; 1 never."""
    cluster: bool = True
    """Let the hidden states join neighbours to the salient and negative tokens."""
    cluster_threshold: float = number(0.4, at_least=-1, at_most=2)
    """A neighbour joins where the measure exceeds this."""
    cluster_measure: ClusterMeasure = ClusterMeasure.similarity
    """Cosine similarity, or the distance that the released code takes for it."""
    nll_weight: float = number(1.0, at_least=0)
    """Weight of the plain likelihood term beside the weighted one; 0 leaves it out."""
    negative_nll: NegativeNll = NegativeNll.judge
    """The plain likelihood term of wrong answers."""
    span_labels: list[str] = field(default_factory=list)
    """Labels of span feedback that count as errors; unset takes all."""
    span_weight: float = number(1.0, at_least=0)
    """Weight of the unlikelihood of tokens that span feedback marks."""
    scale: float = number(1.0, above=0)
    """Factor on the whole loss (10 in the released code; it matters with gradient clipping)."""
    mixed_rows_drop_positive: bool = False
    """Right answers lose their weighted term in a micro-batch with wrong ones (as in the released code)."""
    heat_maps: int = number(3, at_least=0, at_most=1000)
    """Answers whose token weights are shown in the terminal; the report shows four times as many."""
    probe_items: int = number(64, at_least=0, at_most=1_000_000)
    """Answers on which the probability of salient and negative tokens is followed in evaluations."""
    heldout_answers: int = number(0, at_least=0, at_most=1_000_000)
    """Held-out questions that the start model answers too, so that the same is followed on answers that are never
    trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, words in (("judge_prompt", ("{prompt}", "{judgement}")), ("correct_prompt", ("{prompt}", "{gold}"))):
            text = getattr(self, name)
            require(all(word in text for word in words), f"stage.{name}", f"a text with {' and '.join(words)}", text)

    def work(self) -> Work:
        """An answer of each prompt, made before the first step."""
        return Work(1, self.max_new_tokens)


@hookimpl
def register_stages() -> list[StageSpec]:
    """The stage `nlft`."""
    return [
        StageSpec(
            name="nlft",
            config=NlftConfig,
            impl="plugins.nlft.stage:Nlft",
            data="feedback",
            summary="natural-language fine-tuning: token weights from a judgement of the model's own answers",
            paper="Liu et al. 2024, arXiv:2412.20382; CUT: Xu et al. 2023, arXiv:2312.14591",
            builds=True,
        )
    ]
