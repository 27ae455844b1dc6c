"""The contract of every judge."""

from core.api import ScoreRequest
from core.testing.contracts import JudgeContract


class TestOverlap(JudgeContract):
    reward = "overlap"
    right = (ScoreRequest("Who?", "Ada Lovelace!", answer="Ada Lovelace"),)
    wrong = (ScoreRequest("Who?", "Ada", answer="Ada Lovelace"), ScoreRequest("Who?", "", answer="Ada"))
