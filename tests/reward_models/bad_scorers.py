"""Scorers that misbehave on request: the completion says how. Imported by the worker processes of the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.api import RewardConfig, RewardSpec, Score, ScorerContext, ScoreRequest


@dataclass
class BadConfig(RewardConfig):
    """Options of the misbehaving scorer."""

    ratio: float = 1.0
    """Multiplies a plain number."""
    log: str = ""
    """File that gets the process id at each request."""


class Bad:
    """Scores a plain number with itself, anything else by doing what it says."""

    def __init__(self, config: BadConfig) -> None:
        self.config = config

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        if any(request.completion == "one too many" for request in requests):
            return [Score(1.0)] * (len(requests) + 1)
        return [self.one(request) for request in requests]

    def one(self, request: ScoreRequest) -> Score:
        if self.config.log:
            with Path(self.config.log).open("a", encoding="utf8") as file:
                file.write(f"{os.getpid()}\n")
        match request.completion.split():
            case ["hang"]:
                while True:
                    pass
            case ["sleep", seconds]:
                time.sleep(float(seconds))
                return Score(1.0)
            case ["exit"]:
                os._exit(3)
            case ["sysexit"]:
                sys.exit(4)
            case ["segfault"]:
                os.kill(os.getpid(), signal.SIGSEGV)
            case ["raise"]:
                raise ValueError("no such\nthing")
            case ["nan"]:
                return Score(float("nan"))
            case ["inf"]:
                return Score(float("inf"))
            case ["nanpart"]:
                return Score(1.0, parts={"a": float("nan")})
            case ["none"]:
                return Score(None)
            case ["both"]:
                return Score(0.0, error="it failed")
            case ["float"]:
                return 0.5
            case ["print"]:
                print("[0, 99.0, null, {}]", flush=True)
                return Score(1.0)
            case ["read"]:
                return Score(float(len(sys.stdin.read())))
            case ["memory"]:
                return Score(float(len(bytearray(64 << 30))))
            case ["torch"]:
                return Score(float("torch" in sys.modules))
            case ["child"]:
                child = subprocess.Popen(["sleep", "600"])
                Path(request.meta["pid_file"]).write_text(str(child.pid), encoding="ascii")
                while True:
                    pass
            case ["echo"]:
                return Score(float(len(request.prompt)), parts={"ids": sum(request.completion_ids)})
        return Score(float(request.completion) * self.config.ratio)


def build(config: BadConfig, context: ScorerContext) -> Bad:
    return Bad(config)


def build_broken(config: BadConfig, context: ScorerContext) -> Bad:
    raise RuntimeError("the build failed")


def build_dying(config: BadConfig, context: ScorerContext) -> Bad:
    os._exit(7)


ISOLATED = RewardSpec("bad", BadConfig, "bad_scorers:build", isolated=True)
IN_PROCESS = RewardSpec("bad_here", BadConfig, "bad_scorers:build")
