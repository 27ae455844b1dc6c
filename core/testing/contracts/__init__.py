"""What every plugin of a kind must keep, as classes to inherit. A test file of a plugin is a few lines:

    from core.testing.contracts import StageContract

    class TestHinge(StageContract):
        stage = "hinge"

Each class runs on a tiny random model, without a network, in seconds. Runs are made once for each class.
"""

from __future__ import annotations

from core.testing.contracts.command import CommandContract
from core.testing.contracts.data_source import DataSourceContract
from core.testing.contracts.dialect import DialectContract
from core.testing.contracts.engine import EngineContract
from core.testing.contracts.judge import JudgeContract
from core.testing.contracts.metric import MetricContract
from core.testing.contracts.observer import ObserverContract
from core.testing.contracts.optimizer import OptimizerContract
from core.testing.contracts.peft_method import PeftMethodContract
from core.testing.contracts.reader import ReaderContract
from core.testing.contracts.reward import RewardContract
from core.testing.contracts.stage import StageContract
from core.testing.contracts.text_set import TextSetContract
from core.testing.contracts.tracker import TrackerContract
from core.testing.contracts.transform import TransformContract

__all__ = [
    "CommandContract", "DataSourceContract", "DialectContract", "EngineContract", "JudgeContract", "MetricContract",
    "ObserverContract", "OptimizerContract", "PeftMethodContract", "ReaderContract", "RewardContract", "StageContract",
    "TextSetContract", "TrackerContract", "TransformContract",
]  # fmt: skip
