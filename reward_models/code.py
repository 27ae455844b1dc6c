"""Whether a program passes its tests, each run in a sandbox: see reward_models.sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from core.api import Score, ScorerContext, ScoreRequest
from reward_models import CodeConfig
from reward_models.sandbox import Limits, Sandbox

FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python|py|python3)?[ \t]*\r?\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE
)
TAGS = re.compile(r"\[BEGIN\](.*?)\[DONE\]", re.DOTALL)


def program(completion: str) -> str:
    """The program in a completion: what stands in Python fences (all of them in turn), else between [BEGIN] and
    [DONE], else the whole text."""
    found = FENCE.findall(completion) or TAGS.findall(completion)
    return "\n\n".join(part.strip("\n") for part in found) if found else completion


def record_tests(request: ScoreRequest, config: CodeConfig) -> tuple[list[str], str]:
    """The record's tests, and the code that runs before the program. Where the record has no column of tests, its
    answer is one test.

    Raises: ValueError when there is none, or when the columns hold anything but text.
    """
    columns = {**request.meta, **(request.meta.get("extra") or {})}
    tests, setup = columns.get(config.tests), columns.get(config.setup) or ""
    if isinstance(tests, str) and tests.lstrip().startswith("["):
        tests = json.loads(tests)
    if isinstance(tests, str):
        tests = [tests]
    if tests is None and request.answer:
        tests = [request.answer]
    if not tests:
        raise ValueError(f"the record has no column '{config.tests}' and no answer to test with")
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests) or not isinstance(setup, str):
        raise ValueError(f"the columns '{config.tests}' and '{config.setup}' must hold texts")
    return tests, setup


class Code:
    """The scorer; see CodeConfig for its options."""

    def __init__(self, config: CodeConfig) -> None:
        self.config = config
        limits = Limits(config.limit_s, config.memory_mb, config.disk_mb, config.processes)
        self.sandbox = Sandbox(limits, config.confine)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One Score for each request, in order; an error where there are no tests or no sandbox."""
        return [self.score_one(request) for request in requests]

    def score_one(self, request: ScoreRequest) -> Score:
        """1.0 where all tests pass, else 0.0. `parts`: `passed` (share of the tests), `timed_out`."""
        tests, setup = record_tests(request, self.config)
        outcome = self.sandbox.run(program(request.completion), tests, setup)
        results = outcome.report.get("tests") if isinstance(outcome.report, dict) else None
        results = results if isinstance(results, list) and len(results) == len(tests) else ["not run"] * len(tests)
        passed = sum(result is None for result in results) / len(tests)
        return Score(float(passed == 1), parts={"passed": passed, "timed_out": float(outcome.timed_out)})


def build(config: CodeConfig, context: ScorerContext) -> Code:  # noqa: ARG001 - signature of every build
    """The scorer, its sandbox tried."""
    return Code(config)
