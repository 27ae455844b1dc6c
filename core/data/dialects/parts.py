"""Parts of records that several dialects make: prompts, completions, pairs. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.data.dialects.beside import to_context, to_history
from core.data.dialects.fields import is_turns
from core.data.records import Message
from core.data.row_values import RowError, to_text
from core.data.turns import flat, from_transcript, is_transcript, last_turn, to_messages, without_end, without_foreign

Values = Mapping[str, Any]
"""The row's values by canonical field."""


def asked(text: str) -> tuple[Message, ...]:
    """A prompt of one user turn. Raises: RowError for an empty one."""
    if not text.strip():
        raise RowError("empty prompt")
    return (Message("user", text),)


def to_prompt(values: Values) -> tuple[Message, ...]:
    """Messages of the prompt with all that the row brings beside it, see `checked_prompt`."""
    return checked_prompt(bare_prompt(values), values)


def bare_prompt(values: Values) -> tuple[Message, ...]:
    """Messages of the field that holds the prompt (text, transcript or turns), and nothing else."""
    value = values["prompt"]
    if not isinstance(value, str):
        return to_messages(value, "prompt")
    if not is_transcript(value):
        return (Message("user", value),)
    prompt = from_transcript(value, "prompt")
    return prompt[:-1] if prompt[-1].role == "assistant" and not prompt[-1].content else prompt


def checked_prompt(prompt: tuple[Message, ...], values: Values) -> tuple[Message, ...]:
    """A prompt in which somebody is to be answered: the row's `context` before the last question and its `input` behind
    it, `history` before the dialogue, `system` before all. Raises: RowError for an empty prompt."""
    prompt = _in_context(prompt, values)
    if not any(message.role in {"user", "tool"} and message.content.strip() for message in prompt):
        raise RowError("empty prompt")
    history = _history(values)
    if history and history != prompt[: len(history)]:
        first = int(prompt[0].role == "system")
        prompt = (*prompt[:first], *history[int(first and history[0].role == "system") :], *prompt[first:])
    system = values.get("system")
    if system is not None and to_text(system, "system").strip() and prompt[0].role != "system":
        prompt = (Message("system", system), *prompt)
    return prompt


_REPEATED = 20
"""Characters from which on a context that stands in the question too is no chance."""


def _in_context(prompt: tuple[Message, ...], values: Values) -> tuple[Message, ...]:
    """The prompt with the context and the input of its row in the last question; what it says already is not said
    twice."""
    before = "" if is_turns(values.get("context")) else to_context(values.get("context"), "context")
    after = values.get("input")
    after = to_text(after, "input") if after is not None else ""
    places = [place for place, message in enumerate(prompt) if message.role == "user"]
    if not places or not (before.strip() or after.strip()):
        return prompt
    question = prompt[places[-1]].content
    added = ["" if len(text) >= _REPEATED and text.strip() in question else text for text in (before, after)]
    said = "\n\n".join(text for text in (added[0], question, added[1]) if text.strip())
    return (*prompt[: places[-1]], prompt[places[-1]]._replace(content=said), *prompt[places[-1] + 1 :])


def _history(values: Values) -> tuple[Message, ...]:
    context = values.get("context")
    earlier = to_messages(context, "context") if is_turns(context) else ()
    return (*to_history(values.get("history"), "history"), *earlier)


def to_completion(value: object, field: str) -> tuple[tuple[Message, ...], Message]:
    """The final assistant turn, and the messages before it in the same field.
    Raises: RowError when it is empty or the last turn is not the assistant's."""
    messages = (Message("assistant", without_end(value)),) if isinstance(value, str) else to_messages(value, field)
    return last_turn(messages, field)


def finished(last: Message) -> dict[str, Any]:
    """Fields of a record that the final assistant turn fills."""
    fields = {"completion": last.content, "calls": last.calls, "reasoning": last.reasoning, "weight": last.weight}
    return {name: value for name, value in fields.items() if name == "completion" or value not in ((), "", None)}


def completed(values: Values) -> dict[str, Any]:
    """A prompt and a completion, which may repeat the prompt before its last turn."""
    before, last = to_completion(values["completion"], "completion")
    return {"prompt": joined(before, values, "completion"), **finished(last)}


def joined(before: tuple[Message, ...], values: Values, field: str) -> tuple[Message, ...]:
    """The prompt, where `field` brings messages before its last turn: they repeat the prompt, or go on from it."""
    prompt = bare_prompt(values)
    if not before:
        return checked_prompt(prompt, values)
    said = [message for message in prompt if message.role != "system"]
    again = [message for message in before if message.role != "system"]
    if said and said in (again[: len(said)], again[-len(said) :]):
        system = prompt[:1] if prompt[0].role == "system" and before[0].role != "system" else ()
        return checked_prompt(system + before, values)
    if before[0].role == "assistant":
        return checked_prompt(prompt + before, values)
    raise RowError(f"the messages of {field} do not hold the prompt", field)


def conversation(messages: tuple[Message, ...], values: Values, field: str) -> dict[str, Any]:
    """A dialogue; where the assistant's turn is not the last one, all of it is the prompt."""
    messages = without_foreign(messages, values.get("tools"))
    if not messages or messages[-1].role != "assistant":
        return {"prompt": checked_prompt(messages, values)}
    before = checked_prompt(messages[:-1], values)
    try:
        last = last_turn(messages, "completion")[1]
    except RowError as error:
        raise RowError(error.reason, field) from None
    return {"prompt": before, **finished(last)}


def compared(chosen: str, rejected: str) -> dict[str, Any]:
    """Fields of a pair. Raises: RowError for two completions that are the same, or one that is empty."""
    chosen, rejected = without_end(chosen), without_end(rejected)
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise RowError(f"empty completion: {name}", name)
    if chosen.strip() == rejected.strip():
        raise RowError("chosen equal to rejected")
    return {"chosen": chosen, "rejected": rejected}


def pair(values: Values, better: str, worse: str) -> dict[str, Any]:
    """A pair of the two fields named, with an explicit prompt that both may repeat before their last turn."""
    before, chosen = to_completion(values[better], better)
    other, rejected = to_completion(values[worse], worse)
    if _said(before) != _said(other):
        raise RowError(f"{better} and {worse} part before their last turn")
    return {"prompt": joined(before, values, better), **_sides(chosen, rejected)}


def whole_pair(values: Values, better: str, worse: str, turns: Callable[[object, str], Any]) -> dict[str, Any]:
    """A pair with an implicit prompt: two whole conversations that differ in their last turn only."""
    before, chosen = last_turn(turns(values[better], better), better)
    other, rejected = last_turn(turns(values[worse], worse), worse)
    if _said(before) != _said(other):
        raise RowError(f"{better} and {worse} part before their last turn")
    return {"prompt": checked_prompt(before, values), **_sides(chosen, rejected)}


def _sides(chosen: Message, rejected: Message) -> dict[str, Any]:
    """Fields of a pair of turns; the weight is that of the chosen one, which alone may be a demonstration."""
    weight = {} if chosen.weight is None else {"weight": chosen.weight}
    return {**compared(flat(chosen), flat(rejected)), **weight}


def _said(messages: Sequence[Message]) -> list[Message]:
    """Messages without their weights."""
    return [message._replace(weight=None) for message in messages]


def ranked_pairs(
    prompt: tuple[Message, ...], completions: Sequence[str], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """A pair for every two completions of one prompt with different scores, the best chosen ones first; margins are
    differences of scores. The prompt alone, where all are equally good."""
    completions = [without_end(completion) for completion in completions]
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
