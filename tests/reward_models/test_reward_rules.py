"""regex, format, length, exact and json: values against hand-worked cases, and their configs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.api import ConfigError, ScorerContext, ScoreRequest
from core.settings.convert import from_plain
from reward_models import ExactConfig, LengthConfig, register_reward_models
from reward_models.rules import build_exact, build_length, normalise

SPECS = {spec.name: spec for spec in register_reward_models()}
CONTEXT = ScorerContext(specs=SPECS)
ROOT = Path(__file__).parents[2]


def score(name: str, params: dict, completion: str, **request):
    """The raw Score of one completion, without guard or process."""
    from core.scoring.guarded import resolve

    spec = SPECS[name]
    config = from_plain(spec.config, params)
    config.check()
    [found] = resolve(spec.impl)(config, CONTEXT).score([ScoreRequest("p", completion, **request)])
    return found


def test_entry_module_is_light():
    code = (
        "import sys, reward_models; reward_models.register_reward_models();"
        "print([m for m in ('torch', 'transformers', 'math_verify', 'sympy', 'hydra') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_registry():
    rules = {"regex", "format", "length", "exact", "json", "numeric"}
    assert set(SPECS) == rules | {"learned", "ensemble", "code", "embedding", "llm", "endpoint"}
    assert {name for name, spec in SPECS.items() if spec.isolated} == {"regex", "format", "exact", "numeric", "code"}
    assert {name for name, spec in SPECS.items() if spec.needs_answer} == {"exact", "numeric"}
    assert {name for name, spec in SPECS.items() if spec.needs_model} == {"learned"}
    for name, spec in SPECS.items():
        assert spec.config(name=name).name == name
        assert spec.summary


@pytest.mark.parametrize(
    ("params", "completion", "value"),
    [
        ({"pattern": "cat"}, "a cat sat", 1.0),
        ({"pattern": "cat"}, "a Cat sat", 0.0),
        ({"pattern": "cat", "ignore_case": True}, "a Cat sat", 1.0),
        ({"pattern": "cat", "full": True}, "a cat", 0.0),
        ({"pattern": ".*cat", "full": True}, "a cat", 1.0),
        ({"pattern": "a.b"}, "a\nb", 0.0),
        ({"pattern": "a.b", "dot_all": True}, "a\nb", 1.0),
        ({"pattern": "cat"}, "", 0.0),
        ({"pattern": r"\${2}"}, "costs $$", 1.0),
        ({"pattern": r"\w+", "full": True}, "größe", 1.0),
    ],
)
def test_regex(params, completion, value):
    assert score("regex", params, completion).value == value


def test_catastrophic_regex_is_an_error_and_others_go_on():
    scorer = CONTEXT.make("regex", {"pattern": r"(a+)+$", "timeout_s": 1.0})
    try:
        scores = scorer.score([ScoreRequest("p", text) for text in ("aaa", "a" * 60 + "b", "b", "aa")])
    finally:
        scorer.close()
    assert [found.value for found in scores] == [1.0, None, 0.0, 1.0]
    assert scores[1].error == "timed out after 1 s"
    assert scorer.errors == 1


THINK = {"sections": ["think", "answer"]}


@pytest.mark.parametrize(
    ("params", "completion", "value"),
    [
        (THINK, "<think>a</think><answer>b</answer>", 1.0),
        (THINK, "<answer>b</answer><think>a</think>", 0.5),
        (THINK, "<think>a</think>", 0.5),
        (THINK, "<think> </think><answer>b</answer>", 0.5),
        (THINK, "<think>a</think><think>a</think><answer>b</answer>", 0.5),
        (THINK, "<think>a<answer>b</answer></think>", 0.5),
        (THINK, "</think>a<think>", 0.0),
        (THINK, "", 0.0),
        ({**THINK, "all_or_nothing": True}, "<think>a</think>", 0.0),
        ({**THINK, "all_or_nothing": True}, "<think>a</think>\n<answer>b</answer>", 1.0),
        ({"prefix": "Dear", "suffix": "Yours"}, "  Dear you. Yours\n", 1.0),
        ({"prefix": "Dear", "suffix": "Yours"}, "Dear you", 0.5),
        ({"patterns": ["a", "b"], "weights": [3.0, 1.0]}, "a", 0.75),
        ({"patterns": ["a", "b"], "weights": [3.0, 1.0], "prefix": "x"}, "xb", 0.4),
    ],
)
def test_format(params, completion, value):
    assert score("format", params, completion).value == pytest.approx(value)


def test_format_names_its_parts():
    params = {**THINK, "prefix": "<think>", "patterns": ["z"]}
    parts = score("format", params, "<think>a</think>").parts
    assert parts == {"prefix": 1.0, "section_think": 1.0, "section_answer": 0.0, "pattern_0": 0.0}


@pytest.mark.parametrize(
    ("params", "length", "value"),
    [
        ({}, 100, 1.0),
        ({}, 75, 0.75),
        ({}, 150, 0.5),
        ({}, 0, 0.0),
        ({}, 300, 0.0),
        ({"tolerance": 20}, 120, 1.0),
        ({"tolerance": 20, "width": 40}, 140, 0.5),
        ({"shape": "quadratic"}, 150, 0.75),
        ({"shape": "gaussian"}, 200, math.exp(-0.5)),
        ({"shape": "step", "tolerance": 5}, 105, 1.0),
        ({"shape": "step", "tolerance": 5}, 106, 0.0),
        ({"side": "over"}, 1, 1.0),
        ({"side": "over"}, 150, 0.5),
        ({"side": "under"}, 150, 1.0),
        ({"side": "under"}, 50, 0.5),
    ],
)
def test_length(params, length, value):
    found = score("length", {"target_chars": 100, **params}, "é" * length)
    assert found.value == pytest.approx(value)
    assert found.parts == {"length": length}
    tokens = score("length", {"target_tokens": 100, **params}, "text", completion_ids=(7,) * length or (7,))
    assert tokens.value == pytest.approx(value) or length == 0


def test_length_in_tokens_needs_tokens():
    assert "token ids" in score("length", {"target_tokens": 5}, "text").error
    assert score("length", {"target_tokens": 5}, "").value == 0.0


@given(st.integers(0, 400), st.integers(1, 100), st.integers(0, 50), st.sampled_from(["linear", "quadratic", "step"]))
def test_length_stays_in_range_and_falls_with_distance(length, target, tolerance, shape):
    scorer = build_length(from_plain(LengthConfig, {"target_chars": target, "tolerance": tolerance, "shape": shape}),
                          CONTEXT)  # fmt: skip
    requests = [ScoreRequest("p", "x" * n) for n in (length, length + 1)]
    near, far = (found.value for found in scorer.score(requests))
    assert 0.0 <= far <= 1.0
    assert far <= near if length >= target else far >= near


@pytest.mark.parametrize(
    ("params", "completion", "answer", "value"),
    [
        ({}, "Paris", "Paris", 1.0),
        ({}, " Paris\n", "Paris", 1.0),
        ({"strip": False}, " Paris", "Paris", 0.0),
        ({}, "paris", "Paris", 0.0),
        ({"lower": True}, "PARIS", "Paris", 1.0),
        ({"lower": True}, "STRASSE", "straße", 1.0),
        ({}, "Paris.", "Paris", 0.0),
        ({"punctuation": True}, "«Paris!»", "Paris", 1.0),
        ({}, "e\u0301", "\u00e9", 1.0),
        ({}, "a \t b", "a b", 1.0),
        ({}, "", "Paris", 0.0),
        ({}, "", "", 1.0),
        ({"extract": r"answer: (\w+)"}, "answer: A, no, answer: B", "B", 1.0),
        ({"extract": r"answer: (\w+)"}, "answer: B, no, answer: A", "B", 0.0),
        ({"extract": r"answer: (\w+)"}, "B", "B", 0.0),
        ({"extract": r"[A-D]"}, "It is C", "C", 1.0),
        ({"extract": r"x(y)?"}, "x", "y", 0.0),
    ],
)
def test_exact(params, completion, answer, value):
    assert score("exact", params, completion, answer=answer).value == value


def test_exact_without_gold_is_an_error():
    assert score("exact", {}, "Paris").error == "the record has no answer"


@given(st.text(), st.booleans(), st.booleans(), st.booleans())
def test_exact_normalisation_is_idempotent_and_reflexive(text, strip, lower, punctuation):
    config = ExactConfig(strip=strip, lower=lower, punctuation=punctuation)
    once = normalise(text, config)
    assert normalise(once, config) == once
    scorer = build_exact(config, CONTEXT)
    assert scorer.score([ScoreRequest("p", text, answer=text)])[0].value == 1.0


@pytest.mark.parametrize(
    ("params", "completion", "value"),
    [
        ({}, '{"a": 1}', 1.0),
        ({}, "[1, 2", 0.0),
        ({}, "", 0.0),
        ({}, "null", 1.0),
        ({}, "NaN", 0.0),
        ({}, "9" * 10_000, 1.0),
        ({}, "[" * 100_000, 0.0),
        ({}, 'Here:\n```json\n{"a": 1}\n```\nbye', 1.0),
        ({"fenced": False}, '```json\n{"a": 1}\n```', 0.0),
        ({}, '```python\n{"a": 1}\n```', 0.0),
        ({"keys": ["a", "b"]}, '{"a": 1, "b": null}', 1.0),
        ({"keys": ["a", "b"]}, '{"a": 1}', 0.0),
        ({"keys": ["a", "b"], "partial": True}, '{"a": 1}', 0.5),
        ({"keys": ["a"]}, '["a"]', 0.0),
        ({"keys": ["ü"]}, '{"\\u00fc": 1}', 1.0),
    ],
)
def test_json(params, completion, value):
    assert score("json", params, completion).value == value


@pytest.mark.parametrize(
    ("name", "params", "key"),
    [
        ("regex", {"pattern": "(a"}, "reward.pattern"),
        ("regex", {}, "reward.pattern"),
        ("format", {}, "reward.sections"),
        ("format", {"patterns": ["a", "[b"]}, "reward.patterns[1]"),
        ("format", {"patterns": ["a"], "weights": [1, 2]}, "reward.weights"),
        ("format", {"patterns": ["a"], "weights": [0]}, "reward.weights[0]"),
        ("format", {"sections": ["<think>"]}, "reward.sections[0]"),
        ("format", {"sections": ["a", "a"]}, "reward.sections"),
        ("length", {}, "reward.target_tokens"),
        ("length", {"target_tokens": 3, "target_chars": 3}, "reward.target_chars"),
        ("length", {"target_tokens": -1}, "reward.target_tokens"),
        ("length", {"target_tokens": 3, "shape": "cubic"}, "reward.shape"),
        ("exact", {"extract": "*"}, "reward.extract"),
        ("json", {"keys": ["a", "a"]}, "reward.keys"),
        ("numeric", {"tolerance": -1}, "reward.tolerance"),
        ("numeric", {"tolerance": float("nan")}, "reward.tolerance"),
        ("learned", {"batch_tokens": 0}, "reward.batch_tokens"),
        ("regex", {"pattern": "a", "timeout_s": 0}, "reward.timeout_s"),
    ],
)
def test_bad_configs_name_the_key(name, params, key):
    with pytest.raises(ConfigError) as error:
        from_plain(SPECS[name].config, params, key="reward", part="reward").check()
    assert f"'{key}'" in str(error.value)


# ---- a thought before the answer -----------------------------------------------------------------------------------


def test_a_thought_is_seen_by_those_who_ask_for_it():
    def of(name, params, completion="4", thought="two and two"):
        return score(name, params, completion, thought=thought).value

    assert of("regex", {"pattern": "4", "full": True}) == 1.0
    assert of("regex", {"pattern": "two"}) == 0.0
    assert of("regex", {"pattern": r"^<think>.+</think>\s*4$", "dot_all": True}) == 1.0
    assert of("regex", {"pattern": r"^<think>.+</think>\s*4$", "dot_all": True}, thought="") == 0.0
    assert of("json", {}, '{"a": 1}', "[") == 1.0
    tagged = "<answer>4</answer>"
    both = {"sections": ["think", "answer"]}
    assert of("format", both, tagged) == 1.0
    assert of("format", both, tagged, "") == 0.5
    assert of("format", both, "") == 0.0  # cut off inside the thought
    assert of("format", {"prefix": "<answer>", "suffix": "</answer>"}, tagged) == 1.0
    assert of("format", {"prefix": "<think>"}, tagged) == 1.0
    assert of("format", {"patterns": [r"</think>\s*<answer>", "^<answer>"]}, tagged) == 1.0


@pytest.mark.parametrize(("params", "length"), [
    ({"target_chars": 3}, 1.0), ({"target_chars": 3, "thought": True}, 12.0),
    ({"target_tokens": 3}, 2.0), ({"target_tokens": 3, "thought": True}, 5.0),
])  # fmt: skip
def test_the_length_of_an_answer_is_without_its_thought(params, length):
    found = score("length", params, "4", thought="two and two", completion_ids=(1, 2, 3, 4, 5), answer_at=3)
    assert found.parts["length"] == length
