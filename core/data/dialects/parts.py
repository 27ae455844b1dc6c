"""Parts of records that several dialects make: prompts, completions, pairs. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.data.records import Message
from core.data.turns import RowError, flat, from_transcript, is_transcript, last_turn, to_messages, to_text

Values = Mapping[str, Any]
"""The row's values by canonical field."""


def asked(text: str) -> tuple[Message, ...]:
    """A prompt of one user turn. Raises: RowError for an empty one."""
    if not text.strip():
        raise RowError("empty prompt")
    return (Message("user", text),)


def to_prompt(values: Values, field: str = "prompt") -> tuple[Message, ...]:
    """Messages of the field that holds the prompt (text, transcript or turns), with the row's `input` joined to it
    and its `system` before it. Raises: RowError for an empty prompt."""
    value = values[field]
    prompt: tuple[Message, ...]
    if not isinstance(value, str):
        prompt = to_messages(value, field)
    elif is_transcript(value):
        prompt = from_transcript(value, field)
        if prompt[-1].role == "assistant" and not prompt[-1].content:
            prompt = prompt[:-1]
    else:
        more = values.get("input")
        more = to_text(more, "input") if more is not None else ""
        prompt = (Message("user", f"{value}\n\n{more}" if value.strip() and more.strip() else value + more),)
    return checked_prompt(prompt, values)


def checked_prompt(prompt: tuple[Message, ...], values: Values) -> tuple[Message, ...]:
    """A prompt in which somebody is to be answered, with the row's `system` before it. Raises: RowError for others."""
    if not any(message.role in {"user", "tool"} and message.content.strip() for message in prompt):
        raise RowError("empty prompt")
    system = values.get("system")
    if system is not None and to_text(system, "system").strip() and prompt[0].role != "system":
        prompt = (Message("system", system), *prompt)
    return prompt


END_MARKS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>", "<eos>")
"""Ends of text that files write out, after some model's tokenizer."""


def without_end(text: str) -> str:
    """The text without a written end mark: the end of a turn is the tokenizer's own token, added later."""
    for mark in END_MARKS:
        if text.rstrip().endswith(mark):
            return text.rstrip().removesuffix(mark)
    return text


def to_completion(value: object, field: str) -> tuple[tuple[Message, ...], Message]:
    """The final assistant turn, and the messages before it in the same field.
    Raises: RowError when it is empty or the last turn is not the assistant's."""
    messages = (Message("assistant", without_end(value)),) if isinstance(value, str) else to_messages(value, field)
    return last_turn(messages, field)


def finished(last: Message) -> dict[str, Any]:
    """Fields of a record that the final assistant turn fills."""
    fields: dict[str, Any] = {"completion": last.content, "calls": last.calls, "reasoning": last.reasoning}
    return fields if last.weight is None else {**fields, "weight": last.weight}


def completed(values: Values) -> dict[str, Any]:
    """A prompt and a completion, which may repeat the prompt before its last turn."""
    before, last = to_completion(values["completion"], "completion")
    return {"prompt": joined(to_prompt(values), before, values, "completion"), **finished(last)}


def joined(prompt: tuple[Message, ...], before: tuple[Message, ...], values: Values, field: str) -> tuple[Message, ...]:
    """The prompt, where `field` brings messages before its last turn: they repeat the prompt, or go on from it."""
    if not before:
        return prompt
    said = [message for message in prompt if message.role != "system"]
    again = [message for message in before if message.role != "system"]
    if said in (again[: len(said)], again[-len(said) :]):
        system = prompt[:1] if prompt[0].role == "system" and before[0].role != "system" else ()
        return checked_prompt(system + before, values)
    if before[0].role == "assistant":
        return prompt + before
    raise RowError(f"the messages of {field} do not hold the prompt", field)


def conversation(messages: tuple[Message, ...], values: Values, field: str) -> dict[str, Any]:
    """A dialogue; where the assistant's turn is not the last one, all of it is the prompt."""
    if not messages or messages[-1].role != "assistant":
        return {"prompt": checked_prompt(messages, values)}
    before = checked_prompt(messages[:-1], values)
    try:
        last = last_turn(messages, "completion")[1]
    except RowError as error:
        raise RowError(error.reason, field) from None
    return {"prompt": before, **finished(last)}


def compared(chosen: str, rejected: str) -> dict[str, Any]:
    """Fields of a pair. Raises: RowError for two completions that are the same."""
    if chosen.strip() == rejected.strip():
        raise RowError("chosen equal to rejected")
    return {"chosen": chosen, "rejected": rejected}


def pair(values: Values, better: str, worse: str) -> dict[str, Any]:
    """A pair of the two fields named, with an explicit prompt that both may repeat before their last turn."""
    before, chosen = to_completion(values[better], better)
    other, rejected = to_completion(values[worse], worse)
    if _said(before) != _said(other):
        raise RowError(f"{better} and {worse} part before their last turn")
    prompt = joined(to_prompt(values), before, values, better)
    return {"prompt": prompt, **compared(flat(chosen), flat(rejected))}


def whole_pair(values: Values, better: str, worse: str, turns: Callable[[object, str], Any]) -> dict[str, Any]:
    """A pair with an implicit prompt: two whole conversations that differ in their last turn only."""
    before, chosen = last_turn(turns(values[better], better), better)
    other, rejected = last_turn(turns(values[worse], worse), worse)
    if _said(before) != _said(other):
        raise RowError(f"{better} and {worse} part before their last turn")
    return {"prompt": checked_prompt(before, values), **compared(flat(chosen), flat(rejected))}


def _said(messages: Sequence[Message]) -> list[Message]:
    """Messages without their weights."""
    return [message._replace(weight=None) for message in messages]


def ranked_pairs(
    prompt: tuple[Message, ...], completions: Sequence[str], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """A pair for every two completions of one prompt with different scores, the best chosen ones first; margins are
    differences of scores. The prompt alone, where all are equally good."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    pairs = [
        {
            "prompt": prompt,
            "chosen": completions[one],
            "rejected": completions[two],
            "margin": scores[one] - scores[two],
        }
        for place, one in enumerate(order)
        for two in order[place + 1 :]
        if scores[one] > scores[two] and completions[one].strip() != completions[two].strip()
    ]
    return pairs or [{"prompt": prompt}]
