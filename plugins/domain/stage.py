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

from typing_extensions import override

from core.api import Batch, Section, StageResult
from core.torch_api import ChatCodec, Demonstration, Models, StageRun, models_for_roles
from plugins.domain import DomainConfig, NewRows
from plugins.domain.rows import RowsFirst
from plugins.domain.vocabulary import Extension, extend_codec, extended_start
from plugins.sft.stage import WeightedRow, weighted_rows
from plugins.shared.texts import (
    TextData,
    TextStage,
    chunked,
    document_ids,
    held_text,
    score_section,
    text_example,
)


@dataclass
class DomainData(TextData):
    """`train` holds the domain's chunks, each once."""

    order: list[Demonstration] = field(default_factory=list)
    """Domain and replay chunks in the order in which steps take them, all passes."""
    replayed: list[bool] = field(default_factory=list)
    """For each chunk of `order`, whether it is replay."""


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


class Domain(TextStage[DomainConfig, DomainData]):
    """The stage."""

    def __init__(self, run: StageRun) -> None:
        super().__init__(run)
        self.rows: RowsFirst | None = None
        self.extension: Extension | None = None
        self.codec: ChatCodec | None = None
        """The tokenizer with the new tokens."""

    @override
    def build_data(self) -> DomainData:
        """The chunks, their order, and the text that is scored."""
        run, cfg = self.run, self.cfg
        records = run.plan.dataset.train
        codec = run.codec
        if cfg.new_tokens:
            self.extension, codec = extend_codec(run.start, [record.text or "" for record in records], cfg.new_tokens)
            self.codec = codec
            if len(self.extension.pieces) < cfg.new_tokens:
                found = len(self.extension.pieces)
                run.log.warn(f"the documents yield {found} new tokens, not stage.new_tokens={cfg.new_tokens}")
        size = cfg.chunk_tokens or run.cfg.model.max_length
        documents = document_ids(codec, records, cfg.end_token, run.log.drop)
        train = [text_example(chunk) for chunk in chunked(documents, size, cfg.join)]
        replay: list[Demonstration] = []
        if cfg.replay.path:
            general = document_ids(
                codec, run.records_from(cfg.replay.path, "text", "stage.replay.path"), cfg.end_token, run.log.drop
            )
            replay = [text_example(chunk) for chunk in chunked(general, size, cfg.join)]
        count = None if cfg.max_steps is None else cfg.max_steps * cfg.batch_size
        order: list[Demonstration] = []
        replayed: list[bool] = []
        if train:
            order, replayed = mixed(train, replay, cfg.replay.fraction, count, cfg.epochs, run.seed_for("order"))
        held = held_text(run, codec, run.plan.dataset.heldout, cfg.end_token, size, cfg.eval_tokens)
        return DomainData(train, held.examples, held=held, order=order, replayed=replayed)

    @override
    def total_steps(self, data: DomainData) -> int:
        """All chunks of the order, `batch_size` a step."""
        return math.ceil(len(data.order) / self.cfg.batch_size)

    @override
    def build_models(self) -> Models:
        """The policy; with new tokens, an adapter trains their rows too."""
        run, cfg = self.run, self.cfg
        if self.extension is None or self.codec is None:
            return super().build_models()
        folder = run.folder / "extended"
        start, layers = extended_start(
            run.start, self.codec, self.extension, folder, cfg.new_rows is NewRows.pieces
        )  # fmt: skip
        peft = run.cfg.peft
        if peft.method != "none" and not {"trainable_token_indices", "modules_to_save"} & set(peft.options):
            # Only now are the ids known.
            rows = {layer: list(self.extension.ids) for layer in layers}
            peft = dataclasses.replace(peft, options={**peft.options, "trainable_token_indices": rows})
            start = dataclasses.replace(start, cfg=dataclasses.replace(run.cfg, peft=peft))
        models = models_for_roles(start, run.plan.spec.roles, run.parts.shape())
        assert models.policy is not None
        self.rows = RowsFirst(models.policy, self.extension.ids, cfg.new_rows_steps)
        return models

    @override
    def collect_batch(self, models: Models, data: DomainData, step: int) -> Batch[WeightedRow]:
        """The next `batch_size` chunks of the order."""
        cfg = self.cfg
        if self.rows is not None:
            self.rows.at(step)
        part = slice(step * cfg.batch_size, (step + 1) * cfg.batch_size)
        examples = data.order[part]
        replayed = sum(chunk.trained for chunk, flag in zip(examples, data.replayed[part], strict=True) if flag)
        trained = sum(chunk.trained for chunk in examples)
        return Batch(
            updates=[weighted_rows(examples, cfg.micro_batch_tokens)],
            tokens=sum(chunk.tokens for chunk in examples),
            metrics={"target_tokens": float(trained), "replay_tokens": float(replayed)},
        )

    @override
    def report_section(self, result: StageResult) -> Section | None:
        """The held-out documents before and after, and what the new tokens save."""
        note = ""
        if self.extension is not None:
            note = (
                f"{len(self.extension.pieces)} new tokens: {self.extension.bytes_before:.3g} bytes a token on the "
                f"documents before, {self.extension.bytes_after:.3g} with them. Only bits per byte can be compared "
                "over two vocabularies."
            )
        return score_section(result, note)
