"""Canonical fields: the columns that they are looked for in, and the values that they take. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.data.dialects.beside import to_context, to_history
from core.data.row_values import RowError, kind_of, parsed, to_answer, to_label, to_number, to_text
from core.data.turns import to_tools
from core.platform.specs import DialectSpec

ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "query", "instruction"),
    "input": ("input", "context"),
    "context": ("context", "contexts", "passage", "passages", "document", "documents", "docs", "paragraph",
                "paragraphs", "article", "background", "evidence", "knowledge", "reference_text", "source_text",
                "retrieved_contexts", "retrieved_documents", "retrieved_passages", "search_results", "snippets",
                "chunks", "ctxs"),
    "history": ("history", "chat_history", "conversation_history", "dialog_history", "dialogue_history",
                "message_history", "previous_turns", "previous_messages", "past_turns", "past_messages"),
    "completion": ("completion", "response", "output", "target"),
    "messages": ("messages", "conversations", "conversation"),
    "chosen": ("chosen", "chosen_messages", "chosen_response", "response_j", "best_answer"),
    "rejected": ("rejected", "rejected_messages", "rejected_response", "response_k", "best_incorrect_answer"),
    "text": ("text",),
    "system": ("system", "system_prompt", "system_message"),
    "answer": ("answer",),
    "rationale": ("rationale", "chain_of_thought", "cot"),
    "label": ("label", "kto_tag", "desirable", "is_desirable", "is_good", "thumb", "thumbs", "thumbs_up", "liked"),
    "score": ("score", "reward"),
    "margin": ("margin",),
    "chosen_score": ("chosen_score", "score_chosen"),
    "rejected_score": ("rejected_score", "score_rejected"),
    "reasoning": ("reasoning_content", "thinking", "reasoning", "thought", "thoughts"),
    "weight": ("weight", "loss_weight"),
    "trained": ("train", "trainable", "is_trainable", "is_trained"),
    "image": ("image", "images", "image_path", "image_paths", "image_url", "img", "picture", "pictures",
              "pixel_values"),
    "video": ("video", "videos", "video_path"),
    "audio": ("audio", "audios", "audio_path"),
    "tools": ("tools", "functions"),
    "turns": ("turns",),
    "instances": ("instances",),
    "body": ("body",),
    "contexts": ("contexts", "context"),
    "long_answer": ("long_answer",),
    "category": ("category", "intent", "label_text"),
    "tests": ("test_list", "tests", "test_cases", "unit_tests"),
    "setup": ("test_setup_code", "setup_code", "test_setup", "test_imports"),
    "choices": ("choices", "options"),
    "beginnings": ("context_options",),
    "ending": ("continuation",),
    "gold": ("gold", "answer", "answerkey", "answer_key", "answer_idx", "label"),
    "option_1": ("a", "option_a", "option1", "choice1", "opa", "ending0", "column_2"),
    "option_2": ("b", "option_b", "option2", "choice2", "opb", "ending1", "column_3"),
    "option_3": ("c", "option_c", "option3", "choice3", "opc", "ending2", "column_4"),
    "option_4": ("d", "option_d", "option4", "choice4", "opd", "ending3", "column_5"),
    "first": ("output_1", "response_1", "answer_1", "completion_1", "response_a", "answer_a", "output_a",
              "conversation_a"),
    "second": ("output_2", "response_2", "answer_2", "completion_2", "response_b", "answer_b", "output_b",
               "conversation_b"),
    "better": ("label", "preference", "winner", "preferred", "choice", "better"),
    "candidates": ("responses", "completions", "outputs", "answers", "candidates", "generations"),
    "scores": ("scores", "ratings", "rewards"),
    "ranks": ("ranks", "rank", "ranking"),
    "steps": ("steps", "completions"),
    "labels": ("labels", "ratings"),
    "feedback": ("feedback", "errors", "spans"),
    "passages": ("passages",),
    "reference": ("gold", "reference"),
    "preferences": ("preference", "preferences"),
    "prediction_1": ("prediction_1", "prediction", "completion", "response", "output"),
    "prediction_2": ("prediction_2",),
    "prediction_3": ("prediction_3",),
    "prediction_4": ("prediction_4",),
    "generation": ("generation",),
}  # fmt: skip
"""Canonical fields, and the columns that they are looked for in, best first. Case does not matter there, and a space
or a hyphen is an underscore."""

COLUMNS = frozenset(name for names in ALIASES.values() for name in names if len(name) > 3)
"""Names by which a first line is known as a header."""


def normal(column: str) -> str:
    """A column's name as ALIASES has it."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def to_tests(value: object, field: str) -> list[str]:
    """Tests of a program: texts, in a list or as JSON, or one text. Raises: RowError for anything else."""
    found = parsed(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    tests = [found] if isinstance(found, str) else found
    if isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests):
        return tests
    raise RowError(f"wrong type: {field} is {kind_of(value)}, not texts", field)


def to_setup(value: object, field: str) -> str:
    """Code that runs before a program: a text, or lines."""
    lines = value if isinstance(value, list) else [value]
    return "\n".join(to_text(line, field) for line in lines)


def no_media(_value: object, field: str) -> Any:
    """Raises: RowError, as the model would learn to answer without having seen it."""
    raise RowError(f"the row has {field}: pictures, sound and video are not supported", field)


OPTIONAL: dict[str, Callable[[object, str], Any]] = {
    "answer": to_answer, "rationale": to_text, "label": to_label, "score": to_number, "margin": to_number,
    "chosen_score": to_number, "rejected_score": to_number, "reasoning": to_text, "weight": to_number,
    "trained": to_label, "tools": to_tools, "system": to_text, "input": to_text, "context": to_context,
    "history": to_history, "image": no_media, "video": no_media, "audio": no_media, "tests": to_tests,
    "setup": to_setup,
}  # fmt: skip
"""Fields that any dialect takes along where a column of their name is there; what cannot be read is a bad row."""

UNPLACED = {"tests": "test_list", "setup": "test_setup_code"}
"""Those that the record has no place for, and their names in `meta`. Their columns stay in `meta["extra"]` too, and
values of another kind are another thing."""

JOINED = ("system", "input", "context", "history")
"""Those of them that become part of the prompt."""

_ANSWERED = frozenset({"completion", "messages", "generation", "steps", "prediction_1"})
_OF_ANSWERS = frozenset({"label", "score", "trained", "reasoning"})
_OF_PROMPTS = frozenset({"context", "input"})


def has_place(spec: DialectSpec, name: str) -> bool:
    """Whether a dialect can take an optional field along. A verdict needs a completion that the row brings: beside a
    class or a choice, `label` is another thing. A context needs a prompt to stand in."""
    required = spec.required.keys()
    if not required <= ALIASES.keys():
        return True  # a plugin's own
    if name in _OF_ANSWERS and (not required & _ANSWERED or spec.aliases.get("completion") == ALIASES["category"]):
        return False
    if name == "reasoning":
        return "completion" in required
    if name in _OF_PROMPTS:
        return "prompt" in required and "contexts" not in required
    return not (required == {"text"} and name in (*JOINED, "weight"))


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_texts(value: object) -> bool:
    """A list of texts, at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def has_turns(key: str) -> Callable[[object], bool]:
    """Whether a value is a list of turns whose speaker stands under `key`."""
    return lambda value: isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


def is_turns(value: object) -> bool:
    return has_turns("role")(value) or has_turns("from")(value)


def is_said(value: object) -> bool:
    """A text, one turn, or several."""
    return is_text(value) or is_turns([value] if isinstance(value, dict) else value)
