"""Contextual fine-tuning (Choi et al. 2025, arXiv:2503.09032): a text is learned behind a directive on how to read it.

    L = -(1/W) * sum_t log p(x_t | c, x_<t) over the W tokens of the step's passages

A document is cut into chunks x first; then each chunk gets a directive c of its own, in the same example, which nothing
parts. The directive carries no loss. Arms differ in c alone: chunks, their order and the trained tokens are the same.

Layout of a chunk: BEGIN [c SEPARATOR] x, BEGIN being BOS where the tokenizer puts one by itself and else the token that
closes documents, so that the first token of x is predicted in every arm. The end token follows the last chunk of a
document. Of an instruction record the directive opens the first user message, and the completion carries the loss.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typing_extensions import override

from core.api import Batch, ConfigError, DataError, Record, Section, StageResult
from core.torch_api import ChatCodec, Demonstration, Models, StageRun
from plugins.cft import Arm, CftConfig
from plugins.cft.adaptive import written_directives
from plugins.cft.library import KIND
from plugins.sft.stage import WeightedRow, weighted_rows
from plugins.shared.texts import (
    HeldText,
    TextData,
    TextStage,
    closed_texts,
    end_id,
    held_text,
    score_section,
    token_ids,
)

SEPARATOR = "\n\n"
_SHOWN = 3
"""Examples of the first step that are kept as samples."""


@dataclass(frozen=True)
class Passage:
    """What is trained behind a directive: a chunk of text (its token ids), or an instruction record; and the example of
    the first pass, as a plan shows it."""

    index: int
    chunk: tuple[int, ...]
    record: Record | None
    first: Demonstration

    @property
    def ids(self) -> Sequence[int]:
        """Token ids of the first pass."""
        return self.first.ids

    @property
    def weights(self) -> Sequence[float]:
        """Their weights."""
        return self.first.weights

    @property
    def tokens(self) -> int:
        """Real tokens in a forward pass."""
        return self.first.tokens

    @property
    def trained(self) -> int:
        """Target tokens, the same behind any directive."""
        return self.first.trained


def chunk_example(begin: Sequence[int], directive: Sequence[int], chunk: Sequence[int]) -> Demonstration:
    """BEGIN, directive, chunk; the chunk's tokens have weight 1."""
    return Demonstration.of([*begin, *directive], chunk)


def with_directive(record: Record, directive: str) -> Record:
    """The record with the directive before the first user message."""
    prompt = list(record.prompt)
    for place, message in enumerate(prompt):
        if message.role == "user":
            prompt[place] = message._replace(content=f"{directive}{SEPARATOR}{message.content}")
            return replace(record, prompt=tuple(prompt))
    raise ValueError("the record has no user message")


class Cft(TextStage[CftConfig]):
    """The stage. Its data's `train` holds passages, `heldout` examples without directive."""

    def __init__(self, run: StageRun) -> None:
        super().__init__(run)
        self.texts: list[str] = []
        self.categories: list[str] = []
        self.ids: dict[str, list[int]] = {}
        self.begin: list[int] = []
        self.written: dict[int, str] = {}

    @override
    def build_data(self) -> TextData:
        """Passages with the directives of the first pass, and the text that is scored."""
        run, cfg, codec = self.run, self.cfg, self.run.codec
        self._read_directives()
        end = end_id(codec, cfg.end_token)
        self.begin = codec.begin_ids or [end]
        size = cfg.chunk_tokens or run.cfg.model.max_length - cfg.directive_tokens - 2
        documents = [record for record in run.plan.dataset.train if record.text is not None]
        train: list[Passage] = []
        for ids in closed_texts(codec, documents, cfg.end_token, run.log.drop):
            chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
            if cfg.end_every_chunk:
                chunks[:-1] = [[*chunk, end] for chunk in chunks[:-1]]
            for chunk in chunks:
                example = self.behind(chunk, self.directive(len(train), 0))
                train.append(Passage(len(train), tuple(chunk), None, example))
        for record in self._instructions():
            for example in run.examples.demonstrations([self.opened(record, self.directive(len(train), 0))]):
                train.append(Passage(len(train), (), record, example))
        heldout = run.plan.dataset.heldout
        texts = [record for record in heldout if record.text is not None]
        if texts:
            held = held_text(run, codec, texts, cfg.end_token, size, cfg.eval_tokens)
        else:
            held = _held_dialogues(run, heldout)
        return TextData(train, held.examples, held=held)

    def _instructions(self) -> list[Record]:
        """Instruction records that leave room for a directive, the same ones in every arm."""
        run = self.run
        limit = run.cfg.model.max_length - self.cfg.directive_tokens - 2
        kept = []
        for record in run.plan.dataset.train:
            if record.text is not None:
                continue
            if not any(message.role == "user" for message in record.prompt):
                run.log.drop(record, "no user message that a directive could open")
                continue
            for example in run.examples.demonstrations([record]):
                if example.tokens <= limit:
                    kept.append(record)
                else:
                    run.log.drop(record, f"{example.tokens} tokens leave no room for a directive")
        return kept

    def _read_directives(self) -> None:
        """The texts that the arm draws from, checked against their room."""
        run, cfg = self.run, self.cfg
        if cfg.arm is Arm.cpt:
            return
        if cfg.directives_path and cfg.arm is not Arm.cft_negative:
            records = run.records_from(cfg.directives_path, "text", "stage.directives_path")
            sets = {"own": [(record.text or "").strip() for record in records]}
            where = "stage.directives_path"
        else:
            name = cfg.negative if cfg.arm is Arm.cft_negative else cfg.directives
            where = "stage.negative" if cfg.arm is Arm.cft_negative else "stage.directives"
            known = run.parts.text_sets(KIND)
            if name not in known:
                raise ConfigError(f"there is no set of directives '{name}'", where, f"one of: {', '.join(known)}")
            sets = known[name].texts
        self.categories = list(sets)
        self.texts = [text for texts in sets.values() for text in texts]
        for text in self.texts:
            if len(self._directive_ids(text)) > cfg.directive_tokens:
                raise ConfigError(
                    f"a directive is longer than stage.directive_tokens={cfg.directive_tokens}: {text[:60]!r}", where,
                    "shorten it, or raise stage.directive_tokens",
                )  # fmt: skip
        if cfg.arm is Arm.cft_fixed:
            self.texts = [self.texts[run.seed_for("fixed directive") % len(self.texts)]]

    def _directive_ids(self, text: str) -> list[int]:
        """Token ids of directive and separator; tokenised apart from the passage, so nothing merges over the border."""
        if text not in self.ids:
            self.ids[text] = token_ids(self.run.codec, [text + SEPARATOR])[0]
        return self.ids[text]

    @override
    def make_data(self, models: Models, data: TextData) -> TextData:
        """Adaptive directives, where they are asked for."""
        run, cfg = self.run, self.cfg
        if not cfg.adaptive:
            return data
        texts = [
            run.codec.text(passage.chunk) if passage.record is None else passage.record.completion or ""
            for passage in data.train
        ]
        answers = [(passage.record.answer or "") if passage.record else "" for passage in data.train]
        with run.log.timed("directives"):
            written = written_directives(run, texts, answers, self.categories, cfg.directive_tokens)
        self.written = {
            index: text for index, text in written.items() if len(self._directive_ids(text)) <= cfg.directive_tokens
        }
        if not self.written:
            raise DataError("no written directive can be used", "stage.adaptive", "set stage.adaptive=false")
        return data

    def directive(self, index: int, epoch: int) -> str | None:
        """The directive of passage `index` in pass `epoch`; None in the arm without any."""
        if not self.texts:
            return None
        if index in self.written:
            return self.written[index]
        return random.Random(f"{self.run.seed_for('directive')}:{epoch}:{index}").choice(self.texts)

    def behind(self, chunk: Sequence[int], directive: str | None) -> Demonstration:
        """A chunk behind its directive."""
        return chunk_example(self.begin, self._directive_ids(directive) if directive else [], chunk)

    def opened(self, record: Record, directive: str | None) -> Record:
        """An instruction record opened by its directive."""
        return with_directive(record, directive) if directive else record

    def example(self, passage: Passage, epoch: int) -> Demonstration:
        """The example of a passage in pass `epoch`."""
        directive = self.directive(passage.index, epoch)
        if passage.record is None:
            return self.behind(passage.chunk, directive)
        (made,) = self.run.examples.demonstrations([self.opened(passage.record, directive)])
        return made

    @override
    def collect_batch(self, models: Models, data: TextData, step: int) -> Batch[WeightedRow]:
        """The next `batch_size` passages, each with the directive drawn for it and for this pass."""
        cfg = self.cfg
        passages = self.next_examples(data.train, step)
        epochs = [(step * cfg.batch_size + place) // len(data.train) for place in range(cfg.batch_size)]
        examples = [self.example(passage, epoch) for passage, epoch in zip(passages, epochs, strict=True)]
        counts = {
            "target_tokens": sum(example.trained for example in examples),
            "context_tokens": sum(example.tokens - example.trained for example in examples),
        }
        return Batch(
            updates=[weighted_rows(examples, cfg.micro_batch_tokens)],
            tokens=sum(example.tokens for example in examples),
            metrics={name: float(value) for name, value in counts.items()},
            samples=[_sample(models.codec, example) for example in examples[:_SHOWN]] if step == 0 else [],
        )

    @override
    def report_section(self, result: StageResult) -> Section | None:
        """The held-out part before and after, and what stood before the passages."""
        own = f", {len(self.written)} passages have one of their own" if self.written else ""
        note = f"Arm {self.cfg.arm.value}: {len(self.texts)} directives to draw from{own}."
        return score_section(result, note)


def _held_dialogues(run: StageRun, records: Sequence[Record]) -> HeldText:
    """Held-out instruction records without a directive."""
    kept = [(record, run.examples.demonstrations([record])) for record in records if record.prompt]
    size = sum(len((record.completion or "").encode()) for record, made in kept if made)
    return HeldText([example for _, made in kept for example in made], size)


def _sample(codec: ChatCodec, example: Demonstration) -> dict[str, str]:
    """Context and trained text of an example."""
    sides = {
        name: [token for token, weight in zip(example.ids, example.weights, strict=True) if (weight != 0) == trained]
        for name, trained in (("prompt", False), ("completion", True))
    }
    return {name: codec.text(ids) for name, ids in sides.items()}
