"""S3FT, SSR and SDFT: targets built once with the start model, then supervised training on them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from typing_extensions import TypeVar, override

from core.api import DataError, Message, Rollout, Sampling, Score, Section, StageResult
from core.torch_api import (
    Demonstration,
    Models,
    PromptGroup,
    StageData,
    StageRun,
    build_rows,
    encoded_prompts,
    pack,
    save_rows,
    score_request,
    split_by_tokens,
    sum_by_completion,
)
from plugins.s3ft import RewriteConfig, SelfConfig
from plugins.s3ft.composition import composition, section
from plugins.s3ft.route import PARAPHRASE, SELF, Answer, Candidate, Filters, PromptItem, Target, route
from plugins.sft.stage import Sft

C = TypeVar("C", bound=SelfConfig)

BUILD_SETTINGS = (
    "algorithm", "samples", "temperature", "top_p", "max_new_tokens", "remnants", "rewrite_prompt", "leaks",
)  # fmt: skip
"""Settings of the stage that its targets depend on; the others are of training."""


@dataclass
class BuiltData(StageData):
    """Demonstrations, and what they are made of: one for each item."""

    items: list[PromptItem] = field(default_factory=list)


class SelfSupervised(Sft[C, BuiltData]):
    """What the variants share; they differ in their branches alone. Training and evaluation are those of plain
    supervised fine-tuning: weight 1 on the target and its end-of-turn token."""

    branches: tuple[str, ...] = ()
    leaks: Sequence[str] = ()
    """Talk about the reference, which a rewritten answer must not hold."""

    def __init__(self, run: StageRun) -> None:
        super().__init__(run)
        self.rows: list[dict[str, Any]] = []

    @override
    def build_data(self) -> BuiltData:
        """The items with their gold answers as demonstrations; `make_data` puts the targets in their place."""
        run = self.run
        encoded = encoded_prompts(run.codec, run.plan.dataset.train, run.log.drop)
        items = []
        for record, prompt in encoded:
            if record.calls:
                run.log.drop(record, "a final turn with tool calls, which no judge can compare")
                continue
            turn = Message("assistant", record.completion or record.chosen or "", reasoning=record.reasoning)
            try:
                (gold,) = run.codec.closed([run.codec.layout.final(turn)])
            except DataError as error:
                run.log.drop(record, error.what)
                continue
            if run.examples.fits(record, len(prompt) + len(gold)):
                said = run.codec.parted(turn.content)
                items.append(PromptItem(record, prompt, said.answer, gold, record.reasoning or said.thought))
        heldout = [record for record in run.plan.dataset.heldout if record.completion or record.chosen]
        train = [Demonstration.of(item.prompt, item.gold) for item in items]
        return BuiltData(train, run.examples.demonstrations(heldout), items=items)

    @override
    def make_data(self, models: Models, data: BuiltData) -> BuiltData:
        """Let the start model answer, keep what is judged right, save the targets and their composition."""
        run, cfg = self.run, self.cfg
        settings = {name: getattr(cfg, name) for name in BUILD_SETTINGS if hasattr(cfg, name)}
        self.rows = build_rows(run, data.items, partial(self._targets, models), settings, cfg.build_batch)
        run.parts.close_engines()
        run.log.say(f"targets: {save_rows(run.folder / 'built', 'sft', self.rows)}")
        data.facts = composition(self.rows)
        failed = [error for row in self.rows for error in row["judge_errors"]]
        if failed:
            first = Counter(failed).most_common(1)[0][0]
            run.log.warn(f"the judge failed on {len(failed)} answers, which count as wrong; most often: {first}")
        data.train = [
            Demonstration.of(item.prompt, row["completion_ids"])
            for item, row in zip(data.items, self.rows, strict=True)
        ]
        return data

    @override
    def report_section(self, result: StageResult) -> Section | None:
        """Composition of the targets, their log-probabilities under the start model, examples of each branch."""
        return section(self.rows, self.run.plan.algorithm, self.run.cfg.judge.name)

    def asked(self, branch: str, items: Sequence[PromptItem]) -> list[list[int]]:
        """Token ids of the prompts that a branch asks."""
        del branch
        return [item.prompt for item in items]

    # -- making targets ----------------------------------------------------------------------------------------------

    def _targets(self, models: Models, items: Sequence[PromptItem]) -> list[dict[str, Any]]:
        """One row for each item; see docs/s3ft.md for its fields."""
        run, cfg = self.run, self.cfg
        filters = Filters(cfg.remnants, self.leaks, run.codec.tokenizer.all_special_ids, run.cfg.model.max_length)
        targets = route(
            items, self.branches, self._sample, filters, partial(_judge, run), run.cfg.judge.threshold,
            partial(self._likeliest, models),
        )  # fmt: skip
        cases = [(item, [target.ids, item.gold]) for item, target in zip(items, targets, strict=True)]
        means = self._mean_logprobs(models, cases)
        return [_row(*one) for one in zip(items, targets, means, strict=True)]

    def _sample(self, branch: str, items: Sequence[PromptItem]) -> list[list[Answer]]:
        """`samples` answers of the start model to each item; none where the prompt leaves no room for the longest."""
        run, cfg = self.run, self.cfg
        prompts = self.asked(branch, items)
        fits = [len(prompt) + cfg.max_new_tokens <= run.start.max_length for prompt in prompts]
        asked = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        sampling = Sampling(
            max_new_tokens=cfg.max_new_tokens, temperature=cfg.temperature, top_p=cfg.top_p, n=cfg.samples,
            seed=run.seed_for("build", branch, *(item.record.key for item in items[:1])),
            stop_token_ids=run.codec.ends,
        )  # fmt: skip
        with run.log.timed("rollout"):
            rollouts = run.parts.engine().generate(asked, sampling) if asked else []
        drawn = iter(rollouts)
        return [[_answer(run, next(drawn)) for _ in range(cfg.samples)] if fit else [] for fit in fits]

    def _likeliest(self, models: Models, cases: Sequence[tuple[PromptItem, Sequence[Answer]]]) -> list[int]:
        """The answer with the highest mean log-probability a token, an index for each item."""
        several = [(place, [answer.ids for answer in answers]) for place, (_, answers) in enumerate(cases)
                   if len(answers) > 1]  # fmt: skip
        means = self._mean_logprobs(models, [(cases[place][0], ids) for place, ids in several])
        picked = [0] * len(cases)
        for (place, _), values in zip(several, means, strict=True):
            picked[place] = values.index(max(values))
        return picked

    def _mean_logprobs(
        self, models: Models, cases: Sequence[tuple[PromptItem, Sequence[Sequence[int]]]]
    ) -> list[list[float]]:
        """Mean log-probability in nats a token of each completion of each item's prompt under the start model.

        The policy is the start model as long as no step was made, whatever its adapter.
        """

        def tokens(case: tuple[PromptItem, Sequence[Sequence[int]]]) -> int:
            return len(case[0].prompt) + sum(len(ids) for ids in case[1])

        means: list[list[float]] = []
        for part in split_by_tokens(list(cases), tokens, self.cfg.micro_batch_tokens):
            row = pack([PromptGroup(item.prompt, completions) for item, completions in part]).to(models.start.device)
            with torch.no_grad(), self.run.log.timed("start log-probabilities"):
                logprob_M, _ = models.call("policy", row)
            sums = iter(sum_by_completion(logprob_M, row.completion_M, row.completions).tolist())
            means += [[next(sums) / len(ids) for ids in completions] for _, completions in part]
        return means


class Ssr(SelfSupervised[SelfConfig]):
    """Own answers alone."""

    branches = (SELF,)


class Rewriting(SelfSupervised[RewriteConfig]):
    """Variants that also ask for the gold answer in the model's own words."""

    def __init__(self, run: StageRun) -> None:
        super().__init__(run)
        self.leaks = self.cfg.leaks

    @override
    def asked(self, branch: str, items: Sequence[PromptItem]) -> list[list[int]]:
        if branch != PARAPHRASE:
            return super().asked(branch, items)
        return self.run.codec.prompts([_rewriting(item, self.cfg.rewrite_prompt) for item in items])


class S3ft(Rewriting):
    """Own answers, and own rewritings where they are wrong."""

    branches = (SELF, PARAPHRASE)


class Sdft(Rewriting):
    """Own rewritings of the gold answers alone."""

    branches = (PARAPHRASE,)


def _row(item: PromptItem, target: Target, means: Sequence[float]) -> dict[str, Any]:
    turns = [message.as_dict() for message in item.record.prompt]
    row = {
        "messages": [*turns, Message("assistant", target.text, reasoning=target.thought).as_dict()],
        "branch": target.branch,
        "gold": item.gold_text,
        "logprob": means[0],
        "gold_logprob": means[1],
        "completion_ids": target.ids,
        "gold_tokens": len(item.gold),
        "rejected": target.rejected,
        "judge_errors": target.errors,
    }
    return row if item.record.answer is None else {**row, "answer": item.record.answer}


def _answer(run: StageRun, rollout: Rollout) -> Answer:
    thought, answer, at = run.codec.said(rollout.completion_ids)
    return Answer(rollout.completion_ids, answer, rollout.finished, thought, at)


def _rewriting(item: PromptItem, template: str) -> tuple[Message, ...]:
    """The prompt with its last message replaced by the request to rewrite the gold answer."""
    *before, last = item.record.prompt
    texts = {"{question}": last.content, "{reference}": item.gold_text}
    # In one pass, so that a question which holds "{reference}" stays as it is.
    request = re.sub(r"\{question\}|\{reference\}", lambda found: texts[found[0]], template)
    return (*before, last._replace(content=request))


def _judge(run: StageRun, candidates: Sequence[Candidate]) -> list[Score]:
    """Scores of the run's judge against the record's short answer where it has one, else the gold answer."""
    requests = [
        score_request(
            item.record,
            run.codec.said(answer.ids),
            item.prompt,
            answer.ids,
            item.gold_text if item.record.answer is None else item.record.answer,
            {"reference": item.gold_text},
        )
        for item, answer in candidates
    ]
    with run.log.timed("judge"):
        return run.parts.judge().score(requests)
