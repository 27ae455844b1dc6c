"""ensemble: weights and spread against hand-worked numbers, errors of members, and its config."""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from bad_scorers import IN_PROCESS, ISOLATED

from core.api import ConfigError, ScorerContext, ScoreRequest
from core.scoring.guarded import involved
from core.settings.convert import from_plain
from reward_models import EnsembleConfig, register_reward_models

SPECS = {**{spec.name: spec for spec in register_reward_models()}, "bad": ISOLATED, "bad_here": IN_PROCESS}
CONTEXT = ScorerContext(specs=SPECS)


def members(*pairs: tuple[float, float]) -> list[dict]:
    """Members that score the completion "1" with `ratio`: (ratio, weight)."""
    return [{"name": "bad_here", "ratio": ratio, "weight": weight} for ratio, weight in pairs]


def score(completion: str = "1", **params):
    return CONTEXT.make("ensemble", params).score([ScoreRequest("p", completion)])[0]


@pytest.mark.parametrize(
    ("params", "value"),
    [
        ({}, (1 * 1 + 3 * 2 + 8 * 1) / 4),
        ({"aggregate": "sum"}, 15.0),
        ({"spread_coef": 0.5}, 3.75 - 0.5 * math.sqrt(26 / 3)),
    ],
)
def test_weights_and_spread(params, value):
    found = score(members=members((1, 1), (3, 2), (8, 1)), **params)
    assert found.value == pytest.approx(value)
    assert found.parts == pytest.approx(
        {"0_bad_here": 1.0, "1_bad_here": 3.0, "2_bad_here": 8.0, "spread": math.sqrt(26 / 3)}
    )


@pytest.mark.parametrize(("aggregate", "value"), [("min", 1.0), ("median", 3.0)])
def test_unweighted_aggregates(aggregate, value):
    assert score(members=members((3, 1), (1, 1), (8, 1)), aggregate=aggregate).value == value


def test_a_negative_weight_is_a_penalty():
    assert score(members=members((4, 1), (2, -1))).value == pytest.approx((4 - 2) / 2)


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0.1, 10)), min_size=1, max_size=5), st.floats(0, 3))
def test_against_a_plain_loop(pairs, coef):
    found = score(members=members(*pairs), spread_coef=coef)
    total = sum(ratio * weight for ratio, weight in pairs)
    mean, spread = total / sum(weight for _, weight in pairs), statistics.pstdev([ratio for ratio, _ in pairs])
    assert found.value == pytest.approx(mean - coef * spread, rel=1e-9, abs=1e-9)
    assert found.parts["spread"] == pytest.approx(spread, abs=1e-9)


def test_a_members_error_is_the_ensembles_error():
    pair = [{"name": "length", "target_chars": 5}, {"name": "bad_here"}]
    found = score("raise", members=pair)
    assert found.value is None
    assert found.error == "member bad_here: ValueError: no such thing"
    assert found.parts == {"length": 1.0}
    allowed = score("raise", members=pair, allow_member_errors=True)
    assert allowed.value == 1.0 and allowed.parts == {"length": 1.0, "spread": 0.0}
    assert score("raise", members=pair[1:], allow_member_errors=True).value is None


def test_an_isolated_members_hang_stays_its_own():
    scorer = CONTEXT.make("ensemble", {"members": [{"name": "bad", "timeout_s": 1.0}, {"name": "json"}]})
    try:
        scores = scorer.score([ScoreRequest("p", text) for text in ("3", "hang", "5")])
    finally:
        scorer.close()
    assert [found.value for found in scores] == [2.0, None, 3.0]
    assert scores[1].error == "member bad: timed out after 1 s"
    assert scorer.errors == 1
    assert scorer._scorer.members[0].errors == 1


def test_close_reaches_the_members():
    scorer = CONTEXT.make("ensemble", {"members": [{"name": "bad"}]})
    scorer.score([ScoreRequest("p", "1")])
    [worker] = scorer._scorer.members[0]._pool._workers
    scorer.close()
    assert worker.process.returncode is not None


def test_ensembles_nest():
    inner = {"name": "ensemble", "members": members((2, 1), (4, 1)), "weight": 3.0}
    assert score(members=[inner, *members((1, 1))]).value == pytest.approx((3 * 3 + 1) / 4)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"members": []}, "reward.members"),
        ({"members": [{"weight": 1.0}]}, "reward.members[0].name"),
        ({"members": [{"name": "json", "weight": "x"}]}, "reward.members[0].weight"),
        ({"members": [{"name": "json", "weight": 0}]}, "reward.members[0].weight"),
        ({"members": [{"name": "json", "weight": 2}], "aggregate": "min"}, "reward.members[0].weight"),
        ({"members": [{"name": "json"}], "spread_coef": -1}, "'spread_coef' must be >= 0"),
        ({"members": [{"name": "json"}], "aggregate": "sum", "allow_member_errors": True}, "allow_member_errors"),
        ({"members": [{"name": "json"}, {"name": "jsno"}]}, "did you mean 'json'"),
        ({"members": [{"name": "json"}, {"name": "jsno"}]}, "numeric"),
        ({"members": [{"name": "json"}, {"name": "jsno"}]}, "reward.members[1]"),
        ({"members": [{"name": "json", "kees": ["a"]}]}, "unknown key 'reward.members[0].kees'"),
        ({"members": [{"name": "json", "kees": ["a"]}]}, "did you mean 'keys'"),
        ({"members": [{"name": "regex", "pattern": "("}]}, "'reward.members[0].pattern' must be a regular expression"),
        ({"members": [{"name": "regex", "pattern": "("}]}, "where: reward model 'regex'"),
        ({"members": [{"name": "regex", "pattern": "("}]}, "correct reward.members.0.pattern="),
        ({"members": [{"name": "json"}, {"name": "regex"}]}, "'reward.members[1].pattern' must be set"),
        ({"members": [{"name": "json"}, {"name": "regex"}]}, "where: reward model 'regex'"),
        ({"members": [{"name": "json"}, {"name": "json", "threshold": "x"}]}, "'reward.members[1].threshold' must be"),
        ({"members": [{"name": "ensemble", "members": [{"name": "nope"}]}]}, "nope"),
        ({"members": [{"name": "ensemble", "members": [{"name": "nope"}]}]}, "reward.members[0].members[0].name"),
        (
            {"members": [{"name": "json"}, {"name": "ensemble", "members": [{"name": "regex"}]}]},
            "set reward.members.1.members.0.pattern=",
        ),
    ],
)
def test_bad_configs_are_refused_before_anything_runs(params, text):
    with pytest.raises(ConfigError) as error:
        involved(SPECS["ensemble"], from_plain(EnsembleConfig, params), SPECS)
    assert text in str(error.value)
    with pytest.raises(ConfigError):
        CONTEXT.make("ensemble", params)


def test_the_plan_sees_what_the_members_need():
    config = from_plain(EnsembleConfig, {"members": [{"name": "learned"}, {"name": "numeric"}]})
    found = involved(SPECS["ensemble"], config, SPECS)
    assert [spec.name for spec in found] == ["ensemble", "learned", "numeric"]
    assert any(spec.needs_model for spec in found) and any(spec.needs_answer for spec in found)
