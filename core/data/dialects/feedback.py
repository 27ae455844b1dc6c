"""Dialects of feedback finer than a verdict on a whole completion. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from core.data.dialects.beside import to_context
from core.data.dialects.fields import is_number, is_said, is_text, is_texts
from core.data.dialects.parts import Values, asked, checked_prompt, compared, to_completion, to_prompt
from core.data.records import Message, Span, Step
from core.data.row_values import RowError, kind_of, to_number, to_text
from core.data.turns import flat
from core.platform.specs import DialectSpec

# 1. Spans.


def _spans(values: Values) -> list[dict[str, Any]]:
    """A completion with feedback on parts of it. Where the row has more: other predictions and verdicts on pairs of
    them in the order (1,2), (1,3) … (3,4), 1 or 2 for the better one and 0 for neither; a reference answer as a
    demonstration; passages that the question is about (QA-Feedback, Wu et al. 2023, arXiv:2306.01693)."""
    prompt = to_prompt(values)
    passages = values.get("passages")
    if passages:
        text = to_context(passages, "passages")
        prompt = (*prompt[:-1], Message("user", f"{text}\n\n{prompt[-1].content}"))
    said = to_completion(values["prediction_1"], "completion")[1]
    feedback = values["feedback"]
    spans = to_spans(feedback, flat(said))
    faultless = not spans and not (isinstance(feedback, dict) and feedback.get("missing-info"))
    records = [{"prompt": prompt, "completion": flat(said), "spans": spans, "label": faultless}]
    if values.get("reference") is not None:
        last = to_completion(values["reference"], "completion")[1]
        records.append({"prompt": prompt, "completion": flat(last)})
    predictions = [values.get(f"prediction_{number}") for number in (1, 2, 3, 4)]
    verdicts = values.get("preferences")
    if verdicts is not None and all(isinstance(text, str) and text.strip() for text in predictions):
        records += _verdicts(prompt, predictions, verdicts)
    return records


def _verdicts(prompt: tuple[Message, ...], predictions: Sequence[Any], verdicts: Sequence[Any]) -> list[dict[str, Any]]:
    orders = list(combinations(range(len(predictions)), 2))
    if len(verdicts) != len(orders) or not all(verdict in (0, 1, 2) for verdict in verdicts):
        raise RowError(f"verdicts are not {len(orders)} numbers 0, 1 or 2", "preferences")
    pairs = []
    for (one, two), verdict in zip(orders, verdicts, strict=True):
        better, worse = (one, two) if verdict == 1 else (two, one)
        if verdict and predictions[better].strip() != predictions[worse].strip():
            pairs.append({"prompt": prompt, **compared(predictions[better], predictions[worse])})
    return pairs


def to_spans(value: object, text: str) -> tuple[Span, ...]:
    """Feedback {start, end, label} on parts of `text`; the label may stand under several names.
    Raises: RowError for places outside of the text."""
    marks = value.get("errors") if isinstance(value, dict) else value
    if not isinstance(marks, list):
        raise RowError(f"wrong type: feedback is {kind_of(marks)}, not a list of spans", "feedback")
    spans = []
    for mark in marks:
        start, end = (mark.get("start"), mark.get("end")) if isinstance(mark, dict) else (None, None)
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
            raise RowError(f"a span {start!a}..{end!a} outside of the {len(text)} characters", "feedback")
        label = next((mark[name] for name in ("label", "error type", "error_type", "type") if name in mark), "")
        note = mark.get("explanation", mark.get("note", ""))
        spans.append(Span(start, end, to_text(label, "feedback"), note if isinstance(note, str) else ""))
    return tuple(spans)


def _is_feedback(value: object) -> bool:
    marks = value.get("errors") if isinstance(value, dict) else value
    return isinstance(marks, list) and all(
        isinstance(mark, dict) and "start" in mark and "end" in mark for mark in marks
    )


# 2. Steps.


def _stepwise(values: Values) -> dict[str, Any]:
    """Steps and their labels in two lists."""
    texts, labels = values["steps"], values["labels"]
    if len(texts) != len(labels):
        raise RowError(f"{len(texts)} steps but {len(labels)} labels", "labels")
    steps = [Step(to_text(text, "steps"), to_rating(label)) for text, label in zip(texts, labels, strict=True)]
    return {"prompt": to_prompt(values), **worked(steps)}


def _steps(values: Values) -> dict[str, Any]:
    """Steps as objects {text, label}."""
    steps = []
    for item in values["steps"]:
        label = next((item[name] for name in ("label", "rating", "score") if name in item), None)
        steps.append(Step(to_text(item.get("text"), "steps"), None if label is None else to_rating(label)))
    return {"prompt": to_prompt(values), **worked(steps)}


def _process(values: Values) -> list[dict[str, Any]]:
    """Steps with several tries each and the one that was gone on from (PRM800K, Lightman et al. 2023,
    arXiv:2305.20050): a record of the way that was taken, and one for each other try after the steps before it, which
    are not labelled twice."""
    question = values["prompt"]
    answer = question.get("ground_truth_answer")
    base = {
        "prompt": checked_prompt(asked(to_text(question["problem"], "prompt")), values),
        **({"answer": to_text(answer, "prompt")} if answer is not None else {}),
    }
    taken: list[Step] = []
    others: list[list[Step]] = []
    for step in values["feedback"]["steps"]:
        before = [mark._replace(label=None) for mark in taken]
        tries = [_try(item) for item in step.get("completions") or []]
        chosen = step.get("chosen_completion")
        human = step.get("human_completion")
        if isinstance(chosen, int) and 0 <= chosen < len(tries):
            taken.append(tries.pop(chosen))
        others += [[*before, other] for other in tries]
        if len(taken) == len(before):
            if human is None:
                break
            taken.append(_try(human if isinstance(human, dict) else {"text": human}))
    ways = [*([taken] if taken else []), *others]
    if not ways:
        raise RowError("no step", "feedback")
    return [{**base, **worked(way)} for way in ways]


def _try(item: object) -> Step:
    if not isinstance(item, dict):
        raise RowError("a step that is no object", "feedback")
    rating = item.get("rating")
    return Step(to_text(item.get("text"), "feedback"), None if rating is None else to_rating(rating))


def to_rating(value: object) -> float:
    """A label of a step: 1 for true, 0 for false, else the number. Raises: RowError for anything else."""
    return float(value) if isinstance(value, bool) else to_number(value, "labels")


def worked(steps: Sequence[Step]) -> dict[str, Any]:
    """Fields of a completion in steps, one a line; it is a good one where no step has a label of 0 or less.
    Raises: RowError for an empty step."""
    if not steps or not all(step.text.strip() for step in steps):
        raise RowError("an empty step", "steps")
    labels = [step.label for step in steps if step.label is not None]
    verdict = {"label": min(labels) > 0} if labels else {}
    return {"completion": "\n".join(step.text for step in steps), "steps": tuple(steps), **verdict}


def _is_ratings(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, bool) or is_number(item) for item in value)


def _is_steps(value: object) -> bool:
    if not isinstance(value, list) or not all(isinstance(item, dict) and "text" in item for item in value):
        return False
    return any("label" in item or "rating" in item for item in value)


def _is_problem(value: object) -> bool:
    return isinstance(value, dict) and is_text(value.get("problem"))


def _is_process(value: object) -> bool:
    steps = value.get("steps") if isinstance(value, dict) else None
    return isinstance(steps, list) and bool(steps) and all(isinstance(step, dict) for step in steps)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


DIALECTS = (
    DialectSpec(
        "span_feedback", {"prompt": is_said, "prediction_1": is_said, "feedback": _is_feedback}, _spans,
        "a completion and feedback on places in it; where they are there, predictions compared and a reference",
        optional={"passages": _is_list, "reference": is_text, "preferences": _is_list, "prediction_2": is_text,
                  "prediction_3": is_text, "prediction_4": is_text},
    ),
    DialectSpec(
        "stepwise", {"prompt": is_said, "steps": is_texts, "labels": _is_ratings}, _stepwise,
        "steps (also under `completions`) and a label for each",
    ),
    DialectSpec(
        "steps", {"prompt": is_said, "steps": _is_steps}, _steps, "steps as objects with a `label` or `rating`",
        {"steps": ("steps",)},
    ),
    DialectSpec(
        "process", {"prompt": _is_problem, "feedback": _is_process}, _process,
        "tries for each step with a rating (PRM800K)", {"prompt": ("question",), "feedback": ("label",)},
    ),
)  # fmt: skip
