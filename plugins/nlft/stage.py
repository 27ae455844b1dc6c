"""Natural-language fine-tuning (Liu et al. 2024, arXiv:2412.20382): a judgement in words becomes weights of tokens.

1. The start model answers the questions for which rows bring no answer; a rule says which answers are right; a judge
   says in words why the others are wrong (plugins/nlft/build.py).
2. Each answer is scored under the plain prompt, under the judgement, and with the gold answer at hand, in one packed
   pass (rows.py), and its tokens are weighted by how these probabilities differ (saliency.py).
3. Right answers: weighted likelihood. Wrong answers: unlikelihood on the tokens that the judgement makes likelier,
   weighted likelihood on the rest.

Departures from the released code, each with a switch back: weights come from the frozen start model (`annotation`),
clusters join by similarity (`cluster_measure`), the plain likelihood of a wrong answer is that of the judge's row
(`negative_nll`), a row may mix right and wrong answers (`mixed_rows_drop_positive`), the loss is not multiplied by ten
(`scale`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from typing_extensions import override

from core.api import (
    Batch,
    ConfigError,
    DataError,
    Evaluation,
    LossOutput,
    Message,
    Record,
    Section,
    StageResult,
    heatmap,
)
from core.torch_api import ChatCodec, Models, Stage, StageData, StageRun, score_heldout, split_by_tokens
from plugins.nlft import Annotator, Arm, NegativeNll, NlftConfig
from plugins.nlft.build import build_items
from plugins.nlft.items import Attempt, conditioned, item_of, marked, tokens_of_spans
from plugins.nlft.rows import (
    ConditionRows,
    Example,
    NlftRow,
    all_conditions,
    annotation_of,
    lay_out,
    signed_loss,
    token_weights,
    training_rows,
)
from plugins.nlft.saliency import Annotation
from plugins.nlft.show import AnnotatedAnswer, annotation_section, print_heat_maps
from plugins.sft.stage import weighted_nll, weighted_rows


@dataclass
class NlftData(StageData):
    """`train` holds items until their answers are made, then examples. probes: held-out items, answered to be looked
    at alone."""

    probes: list[Attempt] = field(default_factory=list)


class Nlft(Stage[NlftConfig, NlftData, NlftRow]):
    """The stage."""

    def __init__(self, run: StageRun) -> None:
        super().__init__(run)
        self.examples: list[Example] = []
        self.annotations: list[Annotation] = []
        """Of the start model, one for each example."""
        self.probes: list[tuple[Example, Annotation]] = []
        """The same of held-out answers."""
        self.shown: list[AnnotatedAnswer] = []
        self.counts: dict[str, int] = {}

    @override
    def build_data(self) -> NlftData:
        """What the records bring; answers are made once the model stands. Held out: the gold answers."""
        run, cfg = self.run, self.cfg
        items = [item_of(record, cfg) for record in run.plan.dataset.train]
        held = [item_of(record, cfg) for record in run.plan.dataset.heldout]
        gold = [Record(item.record.prompt, item.gold, meta=item.record.meta) for item in held if item.gold]
        probes = self._fitting(held[: cfg.heldout_answers])
        return NlftData(self._fitting(items), run.examples.demonstrations(gold), probes=probes)

    @override
    def make_data(self, models: Models, data: NlftData) -> NlftData:
        """The answers, judgements and token weights of the model as it starts."""
        run, cfg = self.run, self.cfg
        assert models.policy is not None
        if models.policy.prompted and (cfg.cluster or cfg.negative_nll is NegativeNll.misaligned):
            raise ConfigError(
                "a prompt method puts virtual tokens before the row, whose hidden states and positions NLFT would read",
                f"peft={run.cfg.peft.method}",
                "set stage.cluster=false and stage.negative_nll=judge, or take peft=lora",
            )  # fmt: skip
        built = build_items(run, data.train, cfg)
        probes = build_items(run, data.probes, cfg, "heldout_feedback").items
        run.parts.close_engines()
        self.examples, dropped = examples_of(run, built.items, cfg)
        self._tell(built.failures + dropped)
        with run.log.timed("annotate"), torch.no_grad():
            self.annotations = annotate(models, self.examples, cfg)
            held = examples_of(run, probes, cfg)[0]
            self.probes = list(zip(held, annotate(models, held, cfg), strict=True))
        self._show()
        # The loop counts its steps by it: what failed takes none.
        data.train = [example for example in self.examples if example.right or cfg.arm is not Arm.sft]
        return data

    def _fitting(self, items: list[Attempt]) -> list[Attempt]:
        """Items whose prompt leaves room for the answer; the others go to quarantine."""
        run = self.run
        prompts = run.codec.prompts([item.record.prompt for item in items])
        answers = run.codec.completions([item.answer or "" for item in items])
        fitting = []
        for item, prompt, answer in zip(items, prompts, answers, strict=True):
            trained = self.cfg.max_new_tokens if item.answer is None else len(answer)
            tokens = len(prompt) + trained
            if run.examples.fits(item.record, tokens):
                fitting.append(replace(item, tokens=tokens, trained=trained))
        return fitting

    def _tell(self, failures: list[str]) -> None:
        run = self.run
        wrong = sum(not example.right for example in self.examples)
        self.counts = {"right": len(self.examples) - wrong, "wrong": wrong, "left out": len(failures)}
        if failures:
            reasons = ", ".join(f"{count} × {reason}" for reason, count in Counter(failures).most_common(3))
            run.log.warn(f"{len(failures)} answers are left out: {reasons}")
        if not self.examples:
            raise DataError("no answer is left to train on", run.name, f"see {run.folder}/log.txt")
        run.log.say(f"answers: {self.counts['right']} right, {wrong} wrong, {len(failures)} left out")

    def _show(self) -> None:
        run, cfg = self.run, self.cfg
        seeds = [int(annotation.seed_T.sum()) for annotation in self.annotations]
        bare = sum(not count and not example.right for count, example in zip(seeds, self.examples, strict=True))
        if bare:
            run.log.say(f"answers: in {bare} of {self.counts['wrong']} wrong ones the judgement singles out no token")
        self.counts["wrong without a negative token"] = bare
        # One right and one wrong answer in turn, those with something to see first.
        order = sorted(range(len(seeds)), key=lambda index: not seeds[index])
        sides = [[i for i in order if self.examples[i].right], [i for i in order if not self.examples[i].right]]
        turns = [side[place] for place in range(len(seeds)) for side in sides if place < len(side)]
        self.shown = [
            annotated_answer(run.codec, self.examples[index], self.annotations[index])
            for index in turns[: 4 * cfg.heat_maps]
        ]
        print_heat_maps(run.log, self.shown[: cfg.heat_maps])

    @override
    def collect_batch(self, models: Models, data: NlftData, step: int) -> Batch[NlftRow]:
        """The next `batch_size` answers."""
        cfg = self.cfg
        examples = self.next_examples(data.train, step)
        frozen = cfg.annotation is Annotator.frozen
        notes = [self.annotations[example.place] for example in examples] if frozen else None
        rows = training_rows(examples, notes, cfg)
        return Batch(
            [list(rows)],
            {"right_share": sum(example.right for example in examples) / len(examples),
             "target_tokens": float(sum(len(example.answer) for example in examples))},
            tokens=sum(row.layout.packed.tokens for row in rows),
        )  # fmt: skip

    @override
    def compute_loss(self, models: Models, micro_batch: NlftRow) -> LossOutput:
        """Weighted likelihood and unlikelihood of the answers' tokens."""
        cfg = self.cfg
        if micro_batch.annotations is not None:
            pull_M, push_M = token_weights(micro_batch, micro_batch.annotations, cfg)
            kept_M = (pull_M != 0) | (push_M != 0)
            logprob_M, _ = models.call("policy", micro_batch.layout.packed.keep(kept_M))
            loss = signed_loss(logprob_M, pull_M[kept_M], push_M[kept_M])
            return LossOutput(loss, _counts(micro_batch.annotations, micro_batch.examples))
        logprob_M, state_Md = _forward(models, micro_batch.layout, cfg)
        annotations = _annotations(micro_batch.layout, micro_batch.examples, logprob_M, state_Md, cfg)
        loss = signed_loss(logprob_M, *token_weights(micro_batch, annotations, cfg))
        return LossOutput(loss, _counts(annotations, micro_batch.examples))

    @override
    def evaluate(self, models: Models, data: NlftData, step: int) -> Evaluation:
        """Scored held-out completions; `heldout_loss` of the gold answers in nats a token; mean probability of the
        first answers' salient and negative tokens (those of the start model's annotation)."""
        cfg = self.cfg
        found = score_heldout(self.run, models)
        if data.heldout:
            rows = weighted_rows(data.heldout, cfg.micro_batch_tokens)
            found.metrics["heldout_loss"] = sum(weighted_nll(models, row).item() for row in rows)
        trained = list(zip(self.examples, self.annotations, strict=True))[: cfg.probe_items]
        held = followed(models, self.probes, cfg)
        found.metrics |= followed(models, trained, cfg) | {f"heldout_{name}": value for name, value in held.items()}
        return found

    @override
    def report_section(self, result: StageResult) -> Section | None:
        """The token weights of some answers."""
        return annotation_section(self.shown, self.counts)


def examples_of(run: StageRun, items: list[Attempt], cfg: NlftConfig) -> tuple[list[Example], list[str]]:
    """Token ids of finished items, and why others are left out."""
    examples: list[Example] = []
    dropped: list[str] = []
    for item in items:
        example = _example(run.codec, item, cfg)
        names = list(example.prompts)
        if max(example.tokens_under([name]) for name in names) > run.cfg.model.max_length:
            dropped.append(f"longer than model.max_length={run.cfg.model.max_length} with its judgement or gold answer")
        else:
            examples.append(replace(example, place=len(examples)))
    return examples, dropped


def _example(codec: ChatCodec, item: Attempt, cfg: NlftConfig) -> Example:
    prompt = item.record.prompt
    text = item.answer or ""
    # A sampled answer is taken as it was drawn: tokenized again, other ids could stand for the same text.
    answer = list(item.answer_ids) or codec.completions([text])[0]
    marks = None
    if spans := marked(item.record, cfg):
        # The spans are places of the text; what is trained begins with the template's frame.
        final = codec.layout.final(Message("assistant", text))
        shift = max(final.find(text), 0)
        placed = [(start + shift, end + shift) for start, end in spans]
        offsets = codec.tokenizer(final, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        marks = (*tokens_of_spans(final, offsets, placed), False)  # the end of the turn was not marked
    dialogues = {"base": list(prompt)}
    if item.right is False and marks is None:
        dialogues["judge"] = conditioned(prompt, cfg.judge_system, cfg.judge_prompt, judgement=item.judgement or "")
    # A right answer is its own gold answer where the row has none.
    gold = item.gold or (text if item.right else "")
    if gold:
        dialogues["correct"] = conditioned(prompt, cfg.correct_system, cfg.correct_prompt, gold=gold)
    prompts = dict(zip(dialogues, codec.prompts(list(dialogues.values())), strict=True))
    return Example(prompts, answer, bool(item.right), marks)


def annotate(models: Models, examples: list[Example], cfg: NlftConfig) -> list[Annotation]:
    """Weights of all answers' tokens by the policy as it is now."""
    annotations: list[Annotation] = []
    for part in split_by_tokens(examples, lambda one: one.tokens_under(all_conditions(one)), cfg.micro_batch_tokens):
        layout = lay_out(part, [all_conditions(example) for example in part])
        annotations += _annotations(layout, part, *_forward(models, layout, cfg), cfg)
    return annotations


def _forward(models: Models, layout: ConditionRows, cfg: NlftConfig) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [M], and where clustering needs them the hidden states [M, d], of one packed pass."""
    if cfg.cluster:
        assert models.policy is not None
        return models.policy.logprobs_and_states(layout.packed)
    return models.call("policy", layout.packed)[0], None


def _annotations(
    layout: ConditionRows, examples: list[Example], logprob_M: Tensor, state_Md: Tensor | None, cfg: NlftConfig
) -> list[Annotation]:
    return [
        annotation_of(
            example,
            {name: logprob_M[place] for name, place in places.items()},
            None if state_Md is None else state_Md[places["base"]],
            cfg,
        )
        for example, places in zip(examples, layout.places, strict=True)
    ]


def followed(models: Models, probes: list[tuple[Example, Annotation]], cfg: NlftConfig) -> dict[str, float]:
    """Mean p(base) of the seed tokens of right answers, `salient_prob`, and of wrong ones, `negative_prob`."""
    sums: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for part in split_by_tokens(probes, lambda probe: probe[0].tokens, cfg.micro_batch_tokens):
        layout = lay_out([example for example, _ in part], [["base"]] * len(part))
        prob_M = models.call("policy", layout.packed)[0].exp().cpu()
        for (example, annotation), at in zip(part, layout.places, strict=True):
            name = "salient_prob" if example.right else "negative_prob"
            prob_T = prob_M[at["base"]][annotation.seed_T]
            sums[name] += prob_T.sum().item()
            counts[name] += len(prob_T)
    return {name: sums[name] / count for name, count in counts.items() if count}


def _counts(annotations: list[Annotation], examples: list[Example]) -> dict[str, float]:
    """Salient tokens of right answers and negative tokens of wrong ones, and the neighbours that joined them."""
    counts = {"salient_tokens": 0.0, "negative_tokens": 0.0, "clustered_tokens": 0.0}
    for example, annotation in zip(examples, annotations, strict=True):
        counts["salient_tokens" if example.right else "negative_tokens"] += int(annotation.seed_T.sum())
        counts["clustered_tokens"] += int(annotation.joined_T.sum())
    return counts


def annotated_answer(codec: ChatCodec, example: Example, annotation: Annotation) -> AnnotatedAnswer:
    """What the heat map of an answer shows."""
    tokenizer = codec.tokenizer
    tokens = heatmap.token_texts(tokenizer, example.answer)
    asked = tokenizer.decode(example.prompts["base"], skip_special_tokens=True)
    kind = "right" if example.right else "wrong" if example.marked is None else "marked"
    return AnnotatedAnswer(asked, kind, tokens, annotation.shown_T.tolist(), int(annotation.seed_T.sum()))
