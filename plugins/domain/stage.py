"""Continued pre-training on documents: next-token loss on every token, replay of general text, new tokens.

Loss of a step: L = -(1/W) * sum_t log p(x_t | x_<t) over the W predicted tokens of the step's chunks, domain and replay
alike. A replay share of f means that f of the trained tokens come from the replay text, kept to within one chunk at
every place of the order.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from core.api import Batch, Section, hookimpl
from core.torch_api import (
    Demonstration,
    Models,
    StageData,
    StageRun,
    models_for_roles,
    weighted_rows,
)
from plugins.domain import DomainConfig, NewRows
from plugins.domain.rows import RowsFirst
from plugins.domain.vocabulary import Extension, extend_codec, extended_start
from plugins.shared.texts import HeldText, TextStage, chunked, document_ids, held_text, score_section, text_example


@dataclass
class DomainData(StageData):
    """`train` holds the domain's chunks, each once."""

    order: list[Demonstration] = field(default_factory=list)
    """Domain and replay chunks in the order in which steps take them, all passes."""
    replayed: list[bool] = field(default_factory=list)
    """For each chunk of `order`, whether it is replay."""
    held: HeldText = field(default_factory=lambda: HeldText([], 0))


def shuffled_passes(items: Sequence[Demonstration], seed: int) -> Iterator[Demonstration]:
    """The items again and again, each pass in an order of its own."""
    number = 0
    while True:
        order = list(items)
        random.Random(f"{seed}:{number}").shuffle(order)
        yield from order
        number += 1


def mixed(
    domain: Sequence[Demonstration],
    replay: Sequence[Demonstration],
    fraction: float,
    count: int | None,
    passes: float,
    seed: int,
) -> tuple[list[Demonstration], list[bool]]:
    """Domain chunks with replay chunks between them, and which are replay.

    fraction: share of the trained tokens that are replay; after each chunk the share so far is within one chunk of it.
    count: chunks in all; where it is None, `passes` passes over the domain chunks.
    """
    wanted = math.ceil(len(domain) * passes)
    ours, theirs = shuffled_passes(domain, seed), shuffled_passes(replay, seed + 1)
    order: list[Demonstration] = []
    replayed: list[bool] = []
    tokens = {True: 0, False: 0}
    taken = 0
    while len(order) < count if count is not None else taken < wanted:
        behind = bool(replay) and tokens[True] < fraction * (tokens[True] + tokens[False])
        chunk = next(theirs if behind else ours)
        taken += not behind
        tokens[behind] += chunk.trained
        order.append(chunk)
        replayed.append(behind)
    return order, replayed


class Domain(TextStage):
    """The stage."""

    def __init__(self) -> None:
        self.rows: RowsFirst | None = None
        self.extension: Extension | None = None

    @hookimpl
    def build_data(self, run: StageRun) -> DomainData:
        """The chunks, their order, and the text that is scored."""
        cfg: DomainConfig = run.cfg.stage
        records = run.plan.dataset.train
        if cfg.new_tokens:
            self.extension = extend_codec(run, [record.text or "" for record in records], cfg.new_tokens)
        size = cfg.chunk_tokens or run.cfg.model.max_length
        train = [text_example(chunk) for chunk in chunked(document_ids(run, records, cfg.end_token), size, cfg.join)]
        replay: list[Demonstration] = []
        if cfg.replay.path:
            general = document_ids(run, run.records_from(cfg.replay.path, "text"), cfg.end_token)
            replay = [text_example(chunk) for chunk in chunked(general, size, cfg.join)]
        count = None if cfg.max_steps is None else cfg.max_steps * cfg.batch_size
        order: list[Demonstration] = []
        replayed: list[bool] = []
        if train:
            order, replayed = mixed(train, replay, cfg.replay.fraction, count, cfg.epochs, run.seed_for("order"))
        held = held_text(run, run.plan.dataset.heldout, cfg.end_token, size, cfg.eval_tokens)
        return DomainData(train, held.examples, order, replayed, held)

    @hookimpl
    def total_steps(self, run: StageRun, data: DomainData) -> int:
        """All chunks of the order, `batch_size` a step."""
        return math.ceil(len(data.order) / run.cfg.stage.batch_size)

    @hookimpl
    def build_models(self, run: StageRun) -> Models:
        """The policy; with new tokens, an adapter trains their rows too."""
        cfg: DomainConfig = run.cfg.stage
        if self.extension is None:
            return models_for_roles(run)
        folder, layers = extended_start(run, self.extension, cfg.new_rows is NewRows.pieces)
        run.start_from(folder)
        peft = run.cfg.peft
        if peft.method != "none" and not {"trainable_token_indices", "modules_to_save"} & set(peft.options):
            # Only now are the ids known.
            rows = {layer: list(self.extension.ids) for layer in layers}
            run.cfg.peft = dataclasses.replace(peft, options={**peft.options, "trainable_token_indices": rows})
        models = models_for_roles(run)
        assert models.policy is not None
        self.rows = RowsFirst(models.policy, self.extension.ids, cfg.new_rows_steps)
        return models

    @hookimpl
    def collect_batch(self, run: StageRun, data: DomainData, step: int) -> Batch:
        """The next `batch_size` chunks of the order."""
        cfg = run.cfg.stage
        if self.rows is not None:
            self.rows.at(step)
        part = slice(step * cfg.batch_size, (step + 1) * cfg.batch_size)
        examples = data.order[part]
        replayed = sum(chunk.trained for chunk, flag in zip(examples, data.replayed[part], strict=True) if flag)
        trained = sum(chunk.trained for chunk in examples)
        return Batch(
            updates=[list(weighted_rows(examples, cfg.micro_batch_tokens))],
            tokens=sum(chunk.tokens for chunk in examples),
            metrics={"target_tokens": float(trained), "replay_tokens": float(replayed)},
        )

    @hookimpl
    def report_section(self, run: StageRun) -> Section | None:
        """The held-out documents before and after, and what the new tokens save."""
        note = ""
        if self.extension is not None:
            note = (
                f"{len(self.extension.pieces)} new tokens: {self.extension.bytes_before:.3g} bytes a token on the "
                f"documents before, {self.extension.bytes_after:.3g} with them. Only bits per byte can be compared "
                "over two vocabularies."
            )
        return score_section(run.first_eval, run.last_eval, note)
