"""What was forgotten: the policy on general text and questions before and after training, without gradient.

Before is measured on the start model in the process that trains, also when a run is resumed, so the KL needs no second
model: the start model's distributions on the general dialogues are kept, [tokens, vocabulary] in fp32 (40 MB for a
vocabulary of 49 thousand). Nothing here draws a random number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.data.records import Message
from core.data.retention_sets import GENERAL, Choice, load_choices, load_text, set_name
from core.models.packed import PromptGroup, pack
from core.models.roles import Models
from core.results import Retained
from core.tokens.examples import split_by_tokens
from core.training.evaluate import bootstrap
from core.training.run import StageRun


@dataclass
class Values:
    """A measure by item: the value of each and its weight in the mean."""

    items: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, value: float, weight: float = 1.0) -> None:
        """One more item."""
        self.items.append(value)
        self.weights.append(weight)

    @property
    def mean(self) -> float:
        """Weighted mean."""
        return sum(v * w for v, w in zip(self.items, self.weights, strict=True)) / sum(self.weights)


class Retention:
    """The measurements of one run. Texts and questions are tokenized once."""

    def __init__(self, run: StageRun, models: Models) -> None:
        cfg = run.cfg.retention
        self.models, self.limit = models, run.cfg.stage.micro_batch_tokens
        self.dialogues: list[PromptGroup] = []
        if cfg.general:
            prompts = models.codec.prompts([[Message("user", question)] for question, _ in GENERAL])
            answers = models.codec.completions([answer for _, answer in GENERAL])
            self.dialogues = [PromptGroup(prompt, [answer]) for prompt, answer in zip(prompts, answers, strict=True)]
        self.tokenizer = models.codec.tokenizer
        self.lead = models.codec.begin_ids
        self.pieces = self._pieces(load_text(cfg.texts), cfg.piece_tokens, cfg.max_items) if cfg.texts else []
        longest = run.cfg.model.max_length
        self.questions = {
            set_name(path): self._questions(load_choices(path, cfg.max_items), longest) for path in cfg.choices
        }
        self.start_logprob: list[Tensor] = []
        """Of the start model on the dialogues, [M, V] for each row."""
        self.before = self._measure()

    @classmethod
    def of(cls, run: StageRun, models: Models) -> Retention | None:
        """The measurements that the config asks for, taken before the first step; None for a run that trains no
        policy or measures nothing."""
        cfg = run.cfg.retention
        wanted = cfg.general or cfg.texts or cfg.choices
        return cls(run, models) if wanted and "policy" in models.trained() else None

    def metrics(self) -> dict[str, float]:
        """Means before training, under the names of metrics.jsonl."""
        return _named(self.before)

    def compare(self) -> tuple[dict[str, float], list[Retained]]:
        """Means now, and the change of each with its 95 % interval, items resampled in pairs."""
        after = self._measure()
        rows = []
        for name, now in after.items():
            then = self.before[name]
            changes = [b - a for a, b in zip(then.items, now.items, strict=True)]
            change, interval = now.mean - then.mean, list(bootstrap(changes, weights=now.weights))
            rows.append(Retained(name, then.mean, now.mean, change, interval, len(changes)))
        return _named(after), rows

    # -- encoding ----------------------------------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _pieces(self, text: str, size: int, most: int) -> list[PromptGroup]:
        """Consecutive pieces of the text's beginning, each behind what the tokenizer puts before a text; the first
        token of a piece is context."""
        # A token has rarely more than 16 characters; the rest of a large file need not be tokenized.
        ids = self._ids(text[: 16 * size * most])
        pieces = [[*self.lead, *ids[start : start + size]] for start in range(0, len(ids), size)][:most]
        return [PromptGroup(piece[:1], [piece[1:]]) for piece in pieces if len(piece) > 1]

    def _questions(self, choices: Sequence[Choice], longest: int) -> list[tuple[list[PromptGroup], int]]:
        """Options as rows and the right one's place; options with one context share it. A context that is too long
        loses its beginning."""
        questions = []
        for choice in choices:
            contexts: dict[str, list[list[int]]] = {}
            for context, continuation in choice.options:
                contexts.setdefault(context, []).append(self._ids(continuation))
            groups = []
            for context, continuations in contexts.items():
                room = longest - max(map(len, continuations)) - len(self.lead)
                ids = [*self.lead, *self._ids(context)[-max(room, 1) :]]
                groups.append(PromptGroup(ids or self._ids("\n"), continuations))
            questions.append((groups, choice.gold))
        return questions

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _measure(self) -> dict[str, Values]:
        with torch.no_grad():
            found: dict[str, Values] = {}
            if self.dialogues:
                found["general_loss"], found["general_kl"] = self._general()
            if self.pieces:
                found["text_loss"] = self._text_loss()
            for name, questions in self.questions.items():
                found[name] = self._accuracy(questions)
            return found

    def _general(self) -> tuple[Values, Values]:
        """Loss, and KL(policy || start model) over the whole vocabulary, of the dialogues' answers, in nats a token."""
        loss, divergence = Values(), Values()
        assert self.models.policy is not None
        first = not self.start_logprob
        for number, part in enumerate(split_by_tokens(self.dialogues, _tokens, self.limit)):
            packed = pack(part)
            logprob_MV = torch.log_softmax(self.models.policy.logits(packed).float(), dim=1)
            if first:
                self.start_logprob.append(logprob_MV)
            start_MV = self.start_logprob[number]
            kl_M = (logprob_MV.exp() * (logprob_MV - start_MV)).sum(dim=1)
            taken_M = logprob_MV.gather(1, packed.targets_M.to(logprob_MV.device)[:, None]).squeeze(1)
            for values, per_token in ((loss, -taken_M), (divergence, kl_M)):
                _add_means(values, per_token, packed.completion_M, len(part))
        return loss, divergence

    def _text_loss(self) -> Values:
        """Loss of the text's pieces in nats a token."""
        loss = Values()
        for part in split_by_tokens(self.pieces, _tokens, self.limit):
            packed = pack(part)
            _add_means(loss, -self.models.call("policy", packed)[0], packed.completion_M, len(part))
        return loss

    def _accuracy(self, questions: Sequence[tuple[list[PromptGroup], int]]) -> Values:
        """1 where the right option has the highest mean log-probability a token, else 0."""
        right = Values()
        for part in split_by_tokens(questions, lambda one: sum(map(_tokens, one[0])), self.limit):
            packed = pack([group for groups, _ in part for group in groups])
            means = Values()
            _add_means(means, self.models.call("policy", packed)[0], packed.completion_M, packed.completions)
            scores = iter(means.items)
            for groups, gold in part:
                own = [next(scores) for group in groups for _ in group.completions]
                right.add(float(own.index(max(own)) == gold))
        return right


def _named(values: dict[str, Values]) -> dict[str, float]:
    return {f"retention/{name}": one.mean for name, one in values.items()}


def _tokens(group: PromptGroup) -> int:
    return len(group.prompt) + sum(map(len, group.completions))


def _add_means(values: Values, per_token_M: Tensor, completion_M: Tensor, completions: int) -> None:
    """The mean over each completion's tokens, weighted by their number."""
    per_token, completion = per_token_M.double().cpu(), completion_M.cpu()
    counts = torch.bincount(completion, minlength=completions)
    sums = torch.zeros(completions, dtype=torch.float64).index_add(0, completion, per_token)
    for total, count in zip(sums.tolist(), counts.tolist(), strict=True):
        values.add(total / count, float(count))
