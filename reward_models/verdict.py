"""What a judging model is asked, and how its verdict is read. Torch-free."""

from __future__ import annotations

import re

from core.api import Score, ScoreRequest

QUESTION = """\
Decide whether an answer says the same as a reference answer to the same question. Wording and length do not matter;
a different result, a missing part or a contradiction does.

Question:
{question}

Reference answer:
{reference}

Answer to judge:
{answer}

Does the answer agree with the reference answer? Say in a sentence what is wrong with it where it does not, and end with
"Verdict: yes" or "Verdict: no"."""

FIELDS = ("{question}", "{reference}", "{answer}")
_VERDICT = re.compile(r"verdict\W{0,4}(yes|no)\b", re.IGNORECASE)
_ALONE = re.compile(r"\W*(yes|no)\b\W*(?:\n|$)", re.IGNORECASE)


def gold_of(request: ScoreRequest) -> str | None:
    """The whole gold answer: the reference text that a stage hands over, else the record's answer."""
    reference = request.meta.get("reference")
    return reference if isinstance(reference, str) else request.answer


def question_of(request: ScoreRequest, template: str) -> str:
    """The template with its fields filled in, in one pass: what an answer writes is never taken for a field.

    Raises: ValueError when the request has no gold answer.
    """
    gold = gold_of(request)
    if gold is None:
        raise ValueError("the record has no gold answer")
    texts = dict(zip(FIELDS, (request.prompt, gold, request.completion), strict=True))
    return re.sub("|".join(re.escape(name) for name in FIELDS), lambda found: texts[found[0]], template)


def read_verdict(text: str) -> float | None:
    """1.0 for yes, 0.0 for no: what follows the last "Verdict", else a reply that begins with a line of nothing but
    yes or no. None for anything else."""
    found = _VERDICT.findall(text)
    if found:
        return float(found[-1].lower() == "yes")
    alone = _ALONE.match(text)
    return float(alone[1].lower() == "yes") if alone else None


def verdict_score(reply: str) -> Score:
    """The verdict as a score, with what the reply says before it as its text; an error where there is no verdict."""
    value = read_verdict(reply)
    if value is None:
        return Score(None, error=f"no verdict in the reply {reply[:60]!r}")
    found = list(_VERDICT.finditer(reply))
    return Score(value, text=reply[: found[-1].start()].strip() if found else "")
