"""Every row of the table of combinations, refused and let through."""

from __future__ import annotations

import pytest

from core import combinations
from core.combinations import FAILING, PROMPT_LEARNING, PROVEN, RULES, check_combinations
from core.schema import ModelConfig, PeftConfig, Quant, RolloutConfig, RunConfig, StageConfig
from core.specs import StageSpec

OFFLINE = StageSpec("sft", StageConfig, "a:b", "sft")
ONLINE = StageSpec("rlhf", StageConfig, "a:b", "prompts", rollouts=True)


@pytest.fixture
def installed(monkeypatch):
    """Packages that are taken to be installed."""
    names = {"peft", "bitsandbytes", "vllm"}
    monkeypatch.setattr(combinations, "importable", lambda name: name in names)
    return names


def config(method="none", quant="none", engine="auto", **peft) -> RunConfig:
    return RunConfig(
        stage=StageConfig(), model=ModelConfig(source="x"), peft=PeftConfig(method=method, **peft),
        quant=Quant(quant), rollout=RolloutConfig(name=engine),
    )  # fmt: skip


def found(cfg: RunConfig, spec: StageSpec = OFFLINE) -> dict[str, str]:
    return {finding.name: finding.level for finding in check_combinations(cfg, spec)}


@pytest.mark.parametrize("method", sorted(PROVEN))
@pytest.mark.parametrize("engine", ["auto", "transformers", "vllm"])
def test_proven_methods_without_quantisation(installed, method, engine):
    assert found(config(method, engine=engine), OFFLINE) == {}
    expected = {"virtual-tokens-cannot-reach-vllm": "error"} if engine == "vllm" and method in PROMPT_LEARNING else {}
    assert found(config(method, engine=engine), ONLINE) == expected


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_quantised_weights_need_an_adapter(installed, quant):
    assert found(config(quant=quant)) == {"quantised-base-needs-adapter": "error"}
    assert found(config("lora", quant)) == {}


def test_quantised_weights_and_engines(installed):
    assert found(config("lora", "nf4", "vllm"), ONLINE) == {"quantised-merge-for-vllm": "warning"}
    assert found(config("lora", "nf4", "transformers"), ONLINE) == {}
    assert found(config("lora", "nf4", "vllm"), OFFLINE) == {}
    assert found(config("lora", "int8", merge=True)) == {"quantised-merge": "warning"}


def test_merging(installed):
    assert found(config("lora", merge=True)) == {}
    assert found(config("prefix_tuning", merge=True)) == {"virtual-tokens-cannot-merge": "error"}
    assert found(config(merge=True)) == {"merge-without-adapter": "warning"}


@pytest.mark.parametrize("method", sorted(FAILING))
def test_methods_that_do_not_train_are_refused_with_the_reason(installed, method):
    [finding, *_] = check_combinations(config(method), OFFLINE)
    assert finding.level == "error" and FAILING[method] in finding.message and "peft=lora" in finding.mend


def test_methods_that_were_never_tried_cost_a_warning(installed):
    assert found(config("waveft")) == {"method-not-proven": "warning"}


@pytest.mark.parametrize(
    "setting", [{"r": 8}, {"alpha": 1.0}, {"dropout": 0.1}, {"targets": ["x"]}, {"options": {"a": 1}}]
)
def test_adapter_settings_need_an_adapter(installed, setting):
    assert found(config(**setting)) == {"adapter-settings-without-adapter": "error"}
    assert found(config("lora", **setting)) == {}


def test_packages_that_are_not_installed(installed):
    installed.clear()
    assert found(config("lora", "nf4", "vllm"), ONLINE) == {
        "quantisation-needs-bitsandbytes": "error",
        "adapter-needs-peft": "error",
        "vllm-not-installed": "error",
        "quantised-merge-for-vllm": "warning",
    }
    assert found(config(engine="vllm"), OFFLINE) == {}
    assert found(config(engine="auto"), ONLINE) == {}


def test_every_finding_can_be_read(installed):
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.level in ("error", "warning")
        assert rule.mend or rule.level == "warning"
        assert "{" not in rule.message.format(method="m", quant="q", engine="e", reason="r")
