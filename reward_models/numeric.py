r"""Equality of final answers as numbers or formulas.

Three steps, the same for the completion and for the gold answer:
1. `final_answer` takes the answer out of the text: the last \boxed{…}, else what follows the last `####`, else what
   follows the last "answer is" (or "answer:", "answer ="), else the whole text where it is nothing but an answer, else
   the last number in it.
2. Equal texts are equal. Plain numbers (`plain_number`) are compared as exact fractions within the tolerance.
3. Anything else goes to math-verify, with its own timeouts off (they need signals and count a timeout as "wrong") and
   its errors raised: the scorer runs isolated, so a hang is killed and counted as an error.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from core.api import Score, ScorerContext, ScoreRequest
from reward_models import NumericConfig

MAX_DIGITS = 300
"""Longer numerals and exponents are compared as text only."""
MAX_FORMULA = 300
"""Longest formula in characters that is parsed."""

DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
DECIMAL = rf"(?:{DIGITS}(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)"
NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*[£€¥]?\s*(?:(?P<whole>[0-9]+)\s+(?P<top>[0-9]+)/(?P<under>[0-9]+)"
    rf"|(?P<over>{DECIMAL})\s*/\s*(?P<below>{DECIMAL})|(?P<number>{DECIMAL})(?:[eE](?P<exponent>[+-]?[0-9]+))?)"
)
IN_TEXT = re.compile(
    rf"(?<![A-Za-z0-9_])(?<![0-9]\.)(?:(?<![)\]}}])-)?[£€¥]?(?:[0-9]+ [0-9]+/[0-9]+(?![0-9])"
    rf"|{DECIMAL}(?:/[0-9]+(?:\.[0-9]+)?)?)(?:\s*%)?"
)
UNIT = re.compile(  # possessive, so that its time is linear in the text
    r"\s*+(?P<percent>%|percent\b)?(?P<words>(?:[\s/]*+(?:[A-Za-z]++|°)(?:\^\{?-?[1-9]\}?)?+[.,;:!]?+)*+)\s*+"
)
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
MATH_WORDS = frozenset(
    {"pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "mod", "inf", "infinity", "oo", "half", "quarter", "third",
     "and", "or", "to"}
)  # fmt: skip
"""Words that do not make a text prose, and that are no units."""
UNIT_LETTERS = frozenset("mgshlLJNWVAKCFB")
"""Single letters that are read as a unit after a number; any other one is a variable."""
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
MARKER = re.compile(r"\banswer\s*(?:is|=|:)\s*:?", re.IGNORECASE)


@dataclass(frozen=True)
class Plain:
    """A plain number. `percent` marks one written with a percent sign; its value is the one before the sign. The value
    is None for n/0 and beyond MAX_DIGITS digits: such a number equals nothing but its own text."""

    value: Fraction | None
    percent: bool = False


def clean(text: str) -> str:
    r"""`text` in Unicode form NFKC, with ASCII signs, without bold marks, math delimiters and LaTeX spacing.
    Idempotent."""
    previous = None
    while text != previous:  # taking one layer off may bare another
        previous = text
        text = _clean_once(text)
    return text


def _clean_once(text: str) -> str:
    text = re.sub(r"(?<=[0-9])(?=[¼-¾⅐-⅞])", " ", text)
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻]+", lambda found: "^{" + found[0].translate(SUPERSCRIPTS) + "}", text)
    text = unicodedata.normalize("NFKC", text)
    text = text.translate({0x2212: "-", 0x2013: "-", 0x2044: "/", 0x2215: "/", 0xD7: r"\times ", 0x66A: "%"})
    text = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", text)
    text = text.replace("{,}", ",").replace(r"\%", "%")
    text = re.sub(r"\\(?:[,;!:]|left(?![a-z])|right(?![a-z]))", "", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"(?<=[+-])\\?\$", "", text)
    text = re.sub(r"\\?\$|\\[()\[\]]|[\u200b\ufeff]", " ", text)
    text = re.sub(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}", r" \1/\2 ", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def plain_number(text: str) -> Plain | None:
    """The number that `text` is, where it is nothing but one: `-1,234.5`, `1/2`, `1 1/2`, `2e3`, `50%`, `$5`,
    `3 million`, or a number with words for a unit, which is not compared. None for anything else.

    text: as `clean` leaves it.
    """
    found = NUMBER.match(text)
    unit = UNIT.fullmatch(text, found.end()) if found else None
    if not found or not unit:
        return None
    words = re.findall(r"[A-Za-z]+", unit["words"])
    if any(word.lower() in MATH_WORDS or (len(word) == 1 and word not in UNIT_LETTERS) for word in words):
        return None
    if words and len(words[0]) == 1 and not text[found.end()].isspace() and found["sign"] == "" and "^" in text:
        return None  # 5m^2 may be a formula
    percent = bool(unit["percent"])
    if len(found[0]) > MAX_DIGITS or (found["exponent"] and abs(int(found["exponent"])) > MAX_DIGITS):
        return Plain(None, percent)
    try:
        if found["whole"]:
            value = int(found["whole"]) + Fraction(int(found["top"]), int(found["under"]))
        elif found["over"]:
            value = _fraction(found["over"]) / _fraction(found["below"])
        else:
            value = _fraction(found["number"]) * Fraction(10) ** int(found["exponent"] or 0)
    except ZeroDivisionError:
        return Plain(None, percent)
    if words and words[0].lower() in SCALES:
        value *= SCALES[words[0].lower()]
    return Plain(-value if found["sign"] == "-" else value, percent)


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def boxed(text: str) -> str | None:
    r"""What the last whole \boxed{…} holds, or None."""
    start = text.rfind(r"\boxed{")
    while start >= 0:
        depth, begin = 0, start + len(r"\boxed")
        for position in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[begin + 1 : position]
        start = text.rfind(r"\boxed{", 0, start)
    return None


def final_answer(text: str, require_marker: bool = False) -> str:
    """The answer in `text`, see the module's docstring, as `clean` leaves it; "" where there is none. A thought in
    <think> holds no answer, closed or not."""
    text = clean(text.rpartition("</think>")[2])
    if text.startswith("<think>"):
        return ""
    answer = boxed(text)
    if answer is None and "####" in text:
        answer = text[text.rindex("####") + 4 :].strip().split("\n")[0]
    if answer is None and (marks := list(MARKER.finditer(text))):
        answer = re.split(r"\n|\.\s", text[marks[-1].end() :].strip(), maxsplit=1)[0]
    marked = answer is not None
    if not marked and require_marker:
        return ""
    answer = clean(text if answer is None else answer).rstrip(" .,;:!")
    if plain_number(answer) or not _is_prose(answer):
        return answer
    if marked:  # "therefore 5 = 2 + 3 apples" is not worth a guess; "x = 5 apples" and "5 in all" are
        answer = answer.rpartition("=")[2].strip()
    numbers = [found[0] for found in IN_TEXT.finditer(answer)]
    if not numbers:
        return answer
    return clean(numbers[0] if marked else numbers[-1])


def _is_prose(text: str) -> bool:
    """Whether there is a word that is no LaTeX command and no function name, or more than one line."""
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", text))
    return "\n" in text or any(word.lower() not in MATH_WORDS for word in words)


class Numeric:
    """The scorer; see NumericConfig for its options."""

    def __init__(self, config: NumericConfig) -> None:
        self.config = config
        if config.symbolic:
            _warm_up()

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """1.0 or 0.0 for each request, in order; an error without a readable gold answer."""
        return [self.score_one(request) for request in requests]

    def score_one(self, request: ScoreRequest) -> Score:
        """The Score of one completion. Raises: what math-verify raises."""
        gold = final_answer(request.answer or "")
        if not gold:
            return Score(None, error="the record has no answer")
        answer = final_answer(request.completion, self.config.require_marker)
        if answer == gold:
            return Score(1.0)
        gold_number, number = plain_number(gold), plain_number(answer)
        if gold_number and number:
            return Score(float(self.close(gold_number, number)))
        return self.compare_formulas(gold, answer) if self.config.symbolic else Score(0.0)

    def close(self, gold: Plain, answer: Plain) -> bool:
        """Within the tolerance. Where only one of both is a percentage, it may mean 50 or 0.5."""
        if gold.value is None or answer.value is None:
            return False
        limit = max(Fraction(self.config.tolerance), Fraction(self.config.rel_tolerance) * abs(gold.value))
        pairs = [(gold.value, answer.value)]
        if gold.percent != answer.percent:
            pairs.append((gold.value / (100 if gold.percent else 1), answer.value / (100 if answer.percent else 1)))
        return any(abs(a - b) <= limit for a, b in pairs)

    def compare_formulas(self, gold: str, answer: str) -> Score:
        """Equality by math-verify (which rounds to 6 decimals), or within the tolerance where both are numbers."""
        gold_formula = _parse(gold)
        if gold_formula is None:
            if _is_prose(gold):
                return Score(0.0)  # a gold answer in words is compared as text
            return Score(None, error=f"the gold answer {gold[:80]!r} cannot be read as a number or formula")
        formula = _parse(answer)
        if formula is None:
            return Score(0.0)
        from math_verify import verify

        if verify([gold_formula], [formula], timeout_seconds=None, raise_on_error=True):
            return Score(1.0)
        if not (getattr(gold_formula, "is_number", False) and getattr(formula, "is_number", False)):
            return Score(0.0)
        a, b = complex(gold_formula), complex(formula)
        limit = max(self.config.tolerance, self.config.rel_tolerance * abs(a))
        return Score(float(math.isfinite(abs(a - b)) and abs(a - b) <= limit))


def _parse(text: str) -> Any:
    """The sympy object that math-verify reads in `text` as a whole, or None."""
    from math_verify import LatexExtractionConfig, parse

    if len(text) > MAX_FORMULA or not re.search(r"[0-9A-Za-z]", text) or (_is_prose(text) and "\\" not in text):
        return None
    options: dict[str, Any] = {"fallback_mode": "no_fallback", "parsing_timeout": None, "raise_on_error": True}
    found = parse(f"${text}$", [LatexExtractionConfig()], **options)
    return found[0] if found else None


def _warm_up() -> None:
    """Load math-verify and its parser now, so that the first completion's clock does not pay for it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the disabled timeouts
    _parse(r"\frac{1}{2}")


def build(config: NumericConfig, context: ScorerContext) -> Numeric:  # noqa: ARG001 - signature of every build
    """The scorer with math-verify loaded."""
    return Numeric(config)
