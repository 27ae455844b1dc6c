"""Answers under their conditions as packed rows, and the loss on them.

A row holds several answers, each after two or three prompts of its own (base, judge, correct). Nothing is shared
between prompts; the answer's token ids are the same in all, so token t of one condition is token t of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from core.torch_api import Packed, PromptGroup, pack, split_by_tokens
from plugins.nlft import Annotator, Arm, NegativeNll, NlftConfig
from plugins.nlft.saliency import Annotation, annotate_right, annotate_spans, annotate_wrong, unlikelihood

SHIFTED = "shifted"
"""The judge's row read at the base row's positions, see NegativeNll.misaligned."""


@dataclass(frozen=True)
class Example:
    """Token ids of an answer and of the prompts before it.

    prompts: by condition; `base` always, `correct` where there is a gold answer, `judge` for a judged wrong answer.
    marked: for span feedback, which tokens of the answer are marked. place: its place in the set.
    """

    prompts: dict[str, list[int]]
    answer: list[int]
    right: bool
    marked: tuple[bool, ...] | None = None
    place: int = 0

    @property
    def tokens(self) -> int:
        """Real tokens of prompt and answer."""
        return self.tokens_under(["base"])

    @property
    def trained(self) -> int:
        """Target tokens."""
        return len(self.answer)

    def tokens_under(self, conditions: Sequence[str]) -> int:
        """Real tokens of the answer under `conditions` in a row."""
        return sum(len(self.prompts[name]) + len(self.answer) for name in conditions)


@dataclass
class ConditionRows:
    """A packed row, and for each example the places of its answer's tokens among the row's M, by condition."""

    packed: Packed
    places: list[dict[str, slice]] = field(default_factory=list)


def lay_out(examples: Sequence[Example], conditions: Sequence[Sequence[str]], shifted: bool = False) -> ConditionRows:
    """Pack each example under its conditions. shifted: also read judge rows where base rows have the answer."""
    groups = [
        PromptGroup(example.prompts[name], [example.answer])
        for example, names in zip(examples, conditions, strict=True)
        for name in names
    ]
    layout = ConditionRows(pack(groups))
    end = 0
    for example, names in zip(examples, conditions, strict=True):
        places: dict[str, slice] = {}
        for name in names:
            places[name] = slice(end, end + len(example.answer))
            end += len(example.answer)
        layout.places.append(places)
    return _add_shifted(layout, examples) if shifted else layout


def _add_shifted(layout: ConditionRows, examples: Sequence[Example]) -> ConditionRows:
    """Predictions of the answer's tokens in the judge's row from the positions that the answer has in the base row;
    those that fall outside the row are left out."""
    packed, more = layout.packed, []
    end = len(packed.targets_M)
    for example, places in zip(examples, layout.places, strict=True):
        if "judge" not in places:
            continue
        shift = len(example.prompts["base"]) - len(example.prompts["judge"])
        inside = max(0, len(example.answer) - max(0, shift - 1))
        own = torch.arange(places["judge"].start, places["judge"].start + inside)
        more.append((own, shift))
        places[SHIFTED] = slice(end, end + inside)
        end += inside
    if not more:
        return layout
    own_M = torch.cat([own for own, _ in more])
    predict_M = torch.cat([packed.predict_M[own] + shift for own, shift in more])
    layout.packed = replace(
        packed,
        predict_M=torch.cat([packed.predict_M, predict_M]),
        taken_M=torch.cat([packed.taken_M, packed.taken_M[own_M]]),
        targets_M=torch.cat([packed.targets_M, packed.targets_M[own_M]]),
        completion_M=torch.cat([packed.completion_M, packed.completion_M[own_M]]),
    )
    return layout


def all_conditions(example: Example) -> list[str]:
    """What an annotation looks at."""
    return list(example.prompts)


def trained_conditions(example: Example, cfg: NlftConfig) -> list[str]:
    """What a step with frozen weights looks at."""
    read = cfg.arm is Arm.nlft and cfg.nll_weight > 0 and cfg.negative_nll is not NegativeNll.none
    return ["base", "judge"] if read and "judge" in example.prompts else ["base"]


def annotation_of(example: Example, logprob: dict[str, Tensor], state_Td: Tensor | None, cfg: NlftConfig) -> Annotation:
    """Weights of an answer's tokens from its log-probabilities by condition, [T] each."""
    if example.marked is not None:
        return annotate_spans(torch.tensor(example.marked), logprob.get("correct"), cfg)
    if example.right:
        return annotate_right(logprob["correct"], state_Td, cfg)
    return annotate_wrong(logprob["judge"], logprob["base"], logprob["correct"], state_Td, cfg)


@dataclass
class NlftRow:
    """A micro-batch: a row of examples out of a step of `total`, with their annotations where these are frozen."""

    layout: ConditionRows
    examples: list[Example]
    annotations: list[Annotation] | None
    total: int


def training_rows(
    examples: Sequence[Example], annotations: Sequence[Annotation] | None, cfg: NlftConfig
) -> list[NlftRow]:
    """Examples of a step as rows of at most `micro_batch_tokens` tokens."""
    shifted = cfg.negative_nll is NegativeNll.misaligned and cfg.nll_weight > 0
    live = cfg.annotation is Annotator.live

    def conditions(index: int) -> list[str]:
        return all_conditions(examples[index]) if live else trained_conditions(examples[index], cfg)

    parts = split_by_tokens(
        range(len(examples)), lambda index: examples[index].tokens_under(conditions(index)), cfg.micro_batch_tokens
    )
    return [
        NlftRow(
            lay_out([examples[i] for i in part], [conditions(i) for i in part], shifted),
            [examples[i] for i in part],
            None if annotations is None else [annotations[i] for i in part],
            len(examples),
        )
        for part in parts
    ]


def token_weights(row: NlftRow, annotations: Sequence[Annotation], cfg: NlftConfig) -> tuple[Tensor, Tensor]:
    """Weights of -log p and of -log(1 - p) at each of the row's M tokens, float32 [M] each, so that their sum over the
    step's rows is its loss: scale * mean over the answers of (weighted terms + plain likelihood) / T."""
    pull_M = torch.zeros(len(row.layout.packed.targets_M))
    push_M = torch.zeros_like(pull_M)
    mixed = cfg.mixed_rows_drop_positive and not all(example.right for example in row.examples)
    for example, places, annotation in zip(row.examples, row.layout.places, annotations, strict=True):
        share = cfg.scale / (len(example.answer) * row.total)
        if cfg.arm is Arm.nlft and not (mixed and example.right):
            pull_M[places["base"]] += share * annotation.pull_T
            push_M[places["base"]] += share * annotation.push_T
        if example.right or cfg.arm is Arm.sft_all:
            pull_M[places["base"]] += share * cfg.nll_weight
        elif cfg.negative_nll is NegativeNll.misaligned and SHIFTED in places:
            pull_M[places[SHIFTED]] += share * cfg.nll_weight
        elif cfg.negative_nll is NegativeNll.judge and "judge" in places:
            pull_M[places["judge"]] += share * cfg.nll_weight
    return pull_M, push_M


def signed_loss(logprob_M: Tensor, pull_M: Tensor, push_M: Tensor) -> Tensor:
    """sum(pull * -log p + push * -log(1 - p)), float32 []."""
    pull_M, push_M = pull_M.to(logprob_M.device), push_M.to(logprob_M.device)
    pushed = push_M != 0
    return -(pull_M * logprob_M).sum() + (push_M[pushed] * unlikelihood(logprob_M[pushed])).sum()
