"""numeric: hand-worked answers, laws that hold for every number, and the gold answers of GSM8K where present."""

from __future__ import annotations

import json
import os
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.api import ScorerContext, ScoreRequest, summarise
from reward_models import NumericConfig, register_reward_models
from reward_models.numeric import MAX_DIGITS, Numeric, Plain, clean, final_answer, plain_number

CONTEXT = ScorerContext(specs={spec.name: spec for spec in register_reward_models()})
DATA = Path(os.environ.get("PREFTUNE_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
GSM8K = DATA / "gsm8k" / "train.jsonl"
STRICT = Numeric(NumericConfig())


def value(gold: str | None, completion: str, **options) -> float | None:
    scorer = Numeric(NumericConfig(**options)) if options else STRICT
    return scorer.score_one(ScoreRequest("p", completion, answer=gold)).value


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("72", "72"),
        ("72", "So she sold 48+24 = 72 clips altogether."),
        ("72", "First 10.\n#### 72"),
        ("She adds.\n#### 72", "The answer is 72."),
        ("72", r"thus \boxed{72}, not 73"),
        ("72", r"\boxed{72\text{ clips}}"),
        ("72", r"\boxed{1} or rather \boxed{72}"),
        ("1/2", "0.5"),
        ("0.5", "½"),
        ("1.5", "1½"),
        ("1.5", "1 1/2"),
        (r"\frac{1}{2}", "0.5"),
        ("1/3", "0.333333"),
        ("1234", "1,234"),
        ("1,234,567", "1234567"),
        ("1234", "The answer is **1,234**."),
        ("540", "$540."),
        ("-540", "-$540"),
        ("-5", "\u22125"),
        ("5", "５"),
        ("0", "-0.0"),
        (".5", "0.50"),
        ("50", "50%"),
        ("0.5", "50%"),
        ("50%", "50 percent"),
        ("5", "5 apples"),
        ("12", "12 km/h"),
        ("12", "12 m^2"),
        ("12", "12 m²"),
        ("3000000", "3 million"),
        ("2000", "2e3"),
        ("150000", "1.5×10⁵"),
        ("5", "Answer: x = 5"),
        ("5", "The answer is 5 because 2 + 3 is that"),
        ("1024", "$2^{10}$"),
        (r"$\frac{\sqrt{2}}{2}$", r"$\frac{1}{\sqrt 2}$"),
        ("x^2-1", "(x-1)(x+1)"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("yes", "yes"),
        ("9" * 5000, "9" * 5000),
        ("1e99999", "1e99999"),
    ],
)
def test_equal(gold, completion):
    assert value(gold, completion) == 1.0


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("72", ""),
        ("72", "73"),
        ("72", "720"),
        ("72", "I do not know"),
        ("72", "#### 72\n#### 73"),
        ("5", "-5"),
        ("-5", "5"),
        ("1/2", "1/3"),
        ("1/3", "0.33"),
        ("1.5", "11/2"),
        ("1234", "1.234"),
        ("100", "10²" + "0"),
        ("5", "5/0"),
        ("50", "0.5"),
        ("5%", "50%"),
        ("5x", "5y"),
        ("5", "5x"),
        ("x+1", "x+2"),
        ("yes", "no"),
        ("9" * 5000, "9" * 4999 + "8"),
        ("5", "9" * 5000),
        ("5", "1e999999999"),
        ("1" + "0" * 20, "1" + "0" * 19 + "1"),
        ("3", r"\frac{"),
        ("3", "(((("),
        ("3", r"\boxed{"),
        (r"\infty", "5"),
        ("5", "nan"),
    ],
)
def test_unequal(gold, completion):
    assert value(gold, completion) == 0.0


@pytest.mark.parametrize("gold", [None, "", "  ", r"\frac{"])
def test_unreadable_gold_is_an_error_and_not_a_zero(gold):
    found = STRICT.score_one(ScoreRequest("p", "5", answer=gold))
    assert found.value is None and found.error


def test_tolerance():
    assert value("100", "101") == 0.0
    assert value("100", "101", tolerance=1.0) == 1.0
    assert value("100", "101.01", tolerance=1.0) == 0.0
    assert value("1000", "1009", rel_tolerance=0.01) == 1.0
    assert value("1000", "1011", rel_tolerance=0.01) == 0.0
    assert value("1/3", "0.333333", tolerance=0.0) == 0.0
    assert value(r"\pi", "3.14") == 0.0
    assert value(r"\pi", "3.14", tolerance=0.01) == 1.0


def test_a_marker_can_be_required():
    assert value("72", "so 72", require_marker=True) == 0.0
    assert value("72", "#### 72", require_marker=True) == 1.0
    assert value("72", "The answer is 72", require_marker=True) == 1.0
    assert value("72", r"\boxed{72}", require_marker=True) == 1.0


def test_symbolic_can_be_switched_off():
    assert value("1024", "2^{10}", symbolic=False) == 0.0
    assert value("1024", "1,024", symbolic=False) == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("10-5=5", "10-5=5"),
        ("we get 10-5=5", "5"),
        ("it fell by -3 degrees", "-3"),
        ("3.5.", "3.5"),
        ("in H2O", "in H2O"),
        ("wait...5", "5"),
        ("from 1,2345 on", "2345"),
        ("about 40% of it", "40%"),
        ("a) 1\nb) 2", "2"),
        (r"\boxed{\frac{a}{b}}", r"\frac{a}{b}"),
        ("", ""),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_plain_number():
    assert plain_number("1,234.5") == Plain(Fraction(2469, 2))
    assert plain_number("-1 1/2") == Plain(Fraction(-3, 2))
    assert plain_number("50%") == Plain(Fraction(50), percent=True)
    assert plain_number("1" * (MAX_DIGITS + 1)) == Plain(None)
    assert plain_number("1/0") == Plain(None)
    for text in ("", "x", "5x", "5 pi", "1,5", "2^3", "1 2", "5 or 6", "--5", "5 and a half", "12,34"):
        assert plain_number(text) is None, text


def test_words_after_a_number_cost_linear_time():
    start = time.perf_counter()
    assert plain_number("5 " + "a" * 20_000 + "1") is None
    assert plain_number("5 " + "ab " * 20_000 + "1") is None
    assert time.perf_counter() - start < 2


@given(st.text())
def test_cleaning_is_idempotent(text):
    assert clean(clean(text)) == clean(text)


@given(st.text(alphabet="0123456789.,-+/%$ ^{}()\\frac=xé½²\n*#", max_size=40))
@settings(deadline=None)
def test_cleaning_odd_numbers_is_idempotent(text):
    assert clean(clean(text)) == clean(text)


@given(st.text(min_size=1))
@settings(deadline=None)
def test_equality_is_reflexive(text):
    found = STRICT.score_one(ScoreRequest("p", text, answer=text))
    assert found.value == (1.0 if final_answer(text) else None)


@given(st.fractions(max_denominator=10**6))
@settings(deadline=None)
def test_every_way_to_write_a_number_is_equal(number):
    fraction = f"{number.numerator}/{number.denominator}"
    ways = [fraction, f"The answer is {fraction}.", f"#### {fraction}", f"so it is {fraction}"]
    if number.denominator == 1:
        whole = number.numerator
        ways += [f"{whole:,}", f"{whole}.00", f"{whole} apples", f"${whole}$"]
    for way in ways:
        assert value(fraction, way) == 1.0, way
    other = number + 1
    assert value(fraction, f"{other.numerator}/{other.denominator}") == 0.0


@given(st.integers(-(10**40), 10**40), st.integers(-(10**40), 10**40))
@settings(deadline=None)
def test_integers_are_equal_only_to_themselves(a, b):
    assert value(str(a), f"{b:,}") == float(a == b)


@pytest.mark.slow
def test_a_formula_that_never_ends_is_an_error():
    """math-verify would spend minutes on this tower of powers."""
    scorer = CONTEXT.make("numeric", {"timeout_s": 2.0})
    try:
        tower = "9^{9^{9^{9^{9}}}}+1"
        scores = scorer.score([ScoreRequest("p", text, answer="5") for text in ("5", tower, "6")])
    finally:
        scorer.close()
    assert [scores[0].value, scores[2].value] == [1.0, 0.0]
    assert scores[1].value is None and scores[1].error == "timed out after 2 s"


ROWS = [
    ("Natalia sold 48/2 = <<48/2=24>>24 in May.\nTogether 48+24 = <<48+24=72>>72.\n#### 72", "72"),
    ("The car costs $<<1200*2=2400>>2,400.\n#### 2,400", "2400"),
    ("It fell by 3.\n#### -3", "-3"),
]


@pytest.mark.parametrize(("text", "gold"), ROWS)
def test_rows_like_gsm8k(text, gold):
    assert value(gold, text) == 1.0
    assert value(str(int(gold) + 1), text) == 0.0


def corrupted(gold: str) -> str:
    """Another number: one more in its last digit's place."""
    return str(Fraction(gold.replace(",", "")) + 1)


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not on this machine")
def test_every_gsm8k_gold_answer_is_right_and_every_corrupted_one_wrong():
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf8").splitlines()]
    golds = [re.search(r"#### (.+)$", row["answer"])[1].strip() for row in rows]
    scorer = CONTEXT.make("numeric")
    try:
        right = [ScoreRequest("p", row["answer"], answer=gold) for row, gold in zip(rows, golds, strict=True)]
        wrong = [ScoreRequest("p", request.completion, answer=corrupted(request.answer)) for request in right]
        scorer.score(right[:50])
        start = time.perf_counter()
        good, bad = summarise(scorer.score(right)), summarise(scorer.score(wrong))
        print(f"{len(rows)} rows, {2 * len(rows) / (time.perf_counter() - start):.0f} scores/s")
    finally:
        scorer.close()
    assert good["count"] == bad["count"] == len(rows)
    assert (good["mean"], good["errors"]) == (1.0, 0.0)
    assert (bad["mean"], bad["errors"]) == (0.0, 0.0)
