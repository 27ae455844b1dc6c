"""Dialects of demonstrations: instructions, questions, choices, classes, code. Torch-free."""

from __future__ import annotations

import re
from typing import Any

from core.data.dialects.fields import ALIASES, UNPLACED, is_number, is_said, is_text, is_texts
from core.data.dialects.parts import Values, asked, checked_prompt, completed, to_completion, to_prompt
from core.data.row_values import RowError, to_answer, to_text
from core.platform.specs import DialectSpec

_MARKED = re.compile(r"(?P<rationale>.*\S)\s*\n#### (?P<answer>[^\n]+?)\s*", re.DOTALL)


def _question(values: Values) -> dict[str, Any]:
    """A worked answer that ends in `#### n` is the completion as a whole; n is the answer (GSM8K)."""
    fields = completed(values)
    marked = _MARKED.fullmatch(fields["completion"])
    return fields | (marked.groupdict() if marked else {"answer": fields["completion"]})


def _reasoned(rationale: str, answer: str) -> dict[str, Any]:
    """A completion that thinks first and then says the answer (Wei et al. 2022, arXiv:2201.11903)."""
    if not rationale.strip() or not answer.strip():
        raise RowError("empty completion", "rationale" if answer.strip() else "answer")
    return {"completion": f"{rationale}\nThe answer is {answer}.", "answer": answer, "rationale": rationale}


def _cot_table(values: Values) -> dict[str, Any]:
    """Question, answer, rationale; line ends are written as the two characters \\n (chain-of-thought files of FLAN)."""
    question, answer, rationale = (
        to_text(values[name], name).replace("\\n", "\n") for name in ("prompt", "answer", "rationale")
    )
    return {"prompt": checked_prompt(asked(question), values), **_reasoned(rationale, answer)}


def _solution(value: object, field: str) -> str:
    """A solution as text; whole numbers lose their `.0`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else to_answer(value, field)


def _number_answer(values: Values) -> dict[str, Any]:
    """A question whose answer is a number, with nothing around it."""
    answer = _solution(values["completion"], "completion")
    return {"prompt": to_prompt(values), "completion": answer, "answer": answer}


def _word_problem(values: Values) -> dict[str, Any]:
    """A story and a question about it (SVAMP)."""
    body, question = (to_text(values[name], name).strip() for name in ("body", "prompt"))
    if not body or not question:
        raise RowError("empty prompt")
    answer = _solution(values["answer"], "answer")
    comma = "" if body[-1] in ".?!,;:" else ","
    prompt = checked_prompt(asked(f"{body}{comma} {question}"), values)
    return {"prompt": prompt, "completion": answer, "answer": answer}


def _instances(values: Values) -> list[dict[str, Any]]:
    """One instruction, and several inputs with their outputs (Self-Instruct); a record each."""
    rows = []
    for instance in values["instances"]:
        if not isinstance(instance, dict):
            raise RowError("an instance that is no object", "instances")
        last = to_completion(to_text(instance.get("output"), "instances"), "completion")[1]
        prompt = to_prompt({**values, "input": instance.get("input")})
        rows.append({"prompt": prompt, "completion": last.content})
    return rows


def _with_contexts(values: Values) -> dict[str, Any]:
    """Contexts, a question about them, and a short answer with a long one as its reasons (PubMedQA). The contexts are
    raw text too."""
    text = "\n\n".join(to_text(item, "contexts") for item in _contexts(values["contexts"]))
    answer = to_text(values["answer"], "answer")
    if not text.strip() or not answer.strip():
        raise RowError("empty text" if answer.strip() else "empty completion")
    prompt = checked_prompt(asked(f"{text}\n\n{to_text(values['prompt'], 'prompt')}"), values)
    return {"prompt": prompt, "completion": answer, "answer": answer, "rationale": values["long_answer"], "text": text}


def _contexts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else value["contexts"]


def _classified(values: Values) -> dict[str, Any]:
    """A text and the name of its class. The text is raw text too."""
    fields = completed(values)
    return fields | {"answer": fields["completion"], "text": values["prompt"]}


def _code(values: Values) -> dict[str, Any]:
    """A task, a program that solves it, and tests; these stand in `meta` as MBPP names them."""
    return completed(values) | {"meta": {UNPLACED["tests"]: list(values["tests"])}}


# Multiple choice: the options get letters, the completion is the letter of the right one.

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _chosen(prompt: str, options: list[str], gold: int, values: Values) -> dict[str, Any]:
    if not prompt.strip() or not all(option.strip() for option in options):
        raise RowError("empty prompt" if not prompt.strip() else "an empty option")
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    letter = LETTERS[gold]
    return {"prompt": checked_prompt(asked(f"{prompt}\n\n{listed}"), values), "completion": letter, "answer": letter}


def _choices(values: Values) -> dict[str, Any]:
    options, labels = _options(values["choices"])
    return _chosen(to_text(_stem(values["prompt"]), "prompt"), options, _gold(values["gold"], options, labels), values)


def _stem(value: object) -> object:
    return value.get("stem") if isinstance(value, dict) else value


def _options(value: Any) -> tuple[list[str], list[str]]:
    """Texts of the options, and their labels: a list of texts, of {label, text}, or {label: […], text: […]}."""
    if isinstance(value, dict):
        texts, labels = value["text"], value.get("label") or LETTERS
    elif isinstance(value[0], dict):
        texts, labels = [item.get("text") for item in value], [item.get("label") for item in value]
    else:
        texts, labels = value, LETTERS
    if len(texts) > len(labels) or len(texts) > len(LETTERS):
        raise RowError(f"{len(texts)} options but {len(labels)} labels", "choices")
    names = [to_answer(label, "choices") for label in labels[: len(texts)]]
    return [to_text(text, "choices") for text in texts], names


def _gold(value: Any, options: list[str], labels: list[str]) -> int:
    """Index of the right option: a whole number counts from 0, a text is a label, or an option itself."""
    text = value.strip() if isinstance(value, str) else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options):
        return value
    if text in labels:
        return labels.index(text)
    if text in options:
        return options.index(text)
    raise RowError(f"the right answer {str(value)[:40]!a} is none of the {len(options)} options", "gold")


def _choices_table(values: Values) -> dict[str, Any]:
    names = [name for name in ("option_1", "option_2", "option_3", "option_4") if values.get(name) not in (None, "")]
    options = [to_answer(values[name], name) for name in names]
    return _chosen(to_text(values["prompt"], "prompt"), options, _gold(values["gold"], options, [*LETTERS]), values)


def _partial_choice(values: Values) -> dict[str, Any]:
    """Several beginnings of a sentence with one end; which is right (WinoGrande by partial scoring)."""
    end = to_text(values["ending"], "ending")
    options = [f"{to_text(start, 'beginnings')} {end}" for start in values["beginnings"]]
    return _chosen("Which sentence is right?", options, _gold(values["gold"], options, [*LETTERS]), values)


def _is_choices(value: object) -> bool:
    if isinstance(value, dict):
        return is_texts(value.get("text")) and isinstance(value.get("label", []), list)
    return is_texts(value) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "text" in item for item in value)
    )


def _is_stem(value: object) -> bool:
    return is_text(_stem(value))


def _is_gold(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _is_letter(value: object) -> bool:
    return isinstance(value, str) and value.strip() in tuple("ABCD")


def _is_option(value: object) -> bool:
    return is_text(value) or is_number(value)


def _is_contexts(value: object) -> bool:
    return is_texts(value) or (isinstance(value, dict) and is_texts(value.get("contexts")))


def _is_instances(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "output" in value[0]


def _is_solution(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


DIALECTS = (
    DialectSpec(
        "multiple_choice", {"prompt": _is_stem, "choices": _is_choices, "gold": _is_gold}, _choices,
        "a question, a list of options, and the right one by index, label or text",
        {"prompt": ("query", "question_stem", "question", "prompt", "input")},
    ),
    DialectSpec(
        "multiple_choice_table",
        {"prompt": is_text, "option_1": _is_option, "option_2": _is_option, "gold": _is_letter}, _choices_table,
        "the same with a column for each option; also MMLU's files without header",
        {"prompt": ("question", "prompt", "query", "column_1"), "gold": (*ALIASES["gold"], "column_6")},
        optional={"option_3": _is_option, "option_4": _is_option},
    ),
    DialectSpec(
        "partial_choice", {"beginnings": is_texts, "ending": is_text, "gold": _is_gold}, _partial_choice,
        "beginnings with one continuation, and the right one",
    ),
    DialectSpec(
        "instances", {"prompt": is_text, "instances": _is_instances}, _instances,
        "an instruction and `instances` of `input` and `output` (Self-Instruct)",
    ),
    DialectSpec(
        "word_problem", {"prompt": is_text, "body": is_text, "answer": _is_solution}, _word_problem,
        "a story, a question and its answer (SVAMP)", {"prompt": ("question",)}, named=True,
    ),
    DialectSpec(
        "contexts_question",
        {"prompt": is_text, "contexts": _is_contexts, "answer": is_text, "long_answer": is_text}, _with_contexts,
        "contexts, a question, a short and a long answer (PubMedQA)",
        {"answer": ("final_decision", "answer")},
    ),
    DialectSpec(
        "code", {"prompt": is_text, "completion": is_text, "tests": is_texts}, _code,
        "a task, a program and its tests (MBPP)",
        {"prompt": ("text", "prompt", "problem", "question"), "completion": ("code", "solution", "completion")},
    ),
    DialectSpec(
        "cot_table", {"prompt": is_text, "answer": is_text, "rationale": is_text}, _cot_table,
        "question, answer and rationale without header (FLAN's chain-of-thought files)",
        {"prompt": ("column_1",), "answer": ("column_2",), "rationale": ("column_3",)}, named=True,
    ),
    DialectSpec(
        "alpaca", {"prompt": is_text, "completion": is_text}, completed,
        "`instruction`, optional `input`, and `output` (or `response`, `completion`)",
        {"prompt": ("instruction",), "completion": ("output", "response", "completion")}, named=True,
    ),
    DialectSpec(
        "prompt_completion", {"prompt": is_said, "completion": is_said}, completed,
        "a prompt column and a completion column", {"prompt": ("prompt", "question", "query", "input")},
    ),
    DialectSpec(
        "question_answer", {"prompt": is_text, "completion": is_text}, _question,
        "`question` and `answer`; a worked answer may end in `#### n`",
        {"prompt": ("question",), "completion": ("answer",)}, named=True,
    ),
    DialectSpec(
        "number_answer", {"prompt": is_text, "completion": is_number}, _number_answer,
        "`question` and an `answer` that is a number",
        {"prompt": ("question",), "completion": ("answer",)}, named=True,
    ),
    DialectSpec(
        "classification", {"prompt": is_text, "completion": is_text}, _classified,
        "`text` and the name of its `category`, `intent` or `label_text`",
        {"prompt": ("text", "sentence", "utterance"), "completion": ALIASES["category"]}, named=True,
    ),
)  # fmt: skip
