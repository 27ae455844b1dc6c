"""Every row of the table of combinations, refused and let through."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.config import combinations
from core.config.combinations import (
    FAILING,
    NEEDED_OPTIONS,
    PROVEN,
    QUANTISED,
    RULES,
    UNMERGEABLE,
    check_chain,
    check_combinations,
)
from core.platform.specs import StageSpec
from core.settings.schema import ModelConfig, PeftConfig, Quant, RolloutConfig, RunConfig, StageConfig
from plugins.online import OnlineConfig

OFFLINE = StageSpec("sft", StageConfig, "a:b", "sft")
ONLINE = StageSpec("rlhf", StageConfig, "a:b", "prompts", rollouts=True)

REFERENCE = StageSpec("dpo", StageConfig, "a:b", "preference", roles=("policy", "reference"))
SCORING = StageSpec("reward", StageConfig, "a:b", "preference", roles=("reward_model",), makes="reward_model")


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
    needed = {NEEDED_OPTIONS[method]: [5]} if method in NEEDED_OPTIONS else {}
    assert found(config(method, engine=engine, options=needed), OFFLINE) == {}
    expected = {"adapter-cannot-reach-engine": "error"} if engine == "vllm" and method in UNMERGEABLE else {}
    assert found(config(method, engine=engine, options=needed), ONLINE) == expected


def test_a_completion_leaves_room_for_its_prompt(installed):
    cfg = config()
    cfg.eval.max_new_tokens = cfg.model.max_length
    assert found(cfg) == {"no-room-for-held-out-prompts": "error"}
    assert found(cfg, SCORING) == {}, "a scoring model says nothing"
    cfg.eval.max_new_tokens = cfg.model.max_length - 1
    cfg.stage = OnlineConfig(max_new_tokens=cfg.model.max_length)
    assert found(cfg, ONLINE) == {"no-room-for-prompts": "error"}
    assert found(cfg, replace(OFFLINE, builds=True)) == {"no-room-for-own-answers": "warning"}
    cfg.stage.max_new_tokens -= 1
    assert found(cfg, ONLINE) == {}


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
    assert found(config("prefix_tuning", merge=True)) == {"adapter-cannot-merge": "error"}
    assert found(config(merge=True)) == {"merge-without-adapter": "warning"}


@pytest.mark.parametrize("quant", ["nf4", "int8"])
@pytest.mark.parametrize("method", sorted(PROVEN - {"none"}))
def test_methods_on_quantised_weights(installed, method, quant):
    options = {NEEDED_OPTIONS[method]: [5]} if method in NEEDED_OPTIONS else {}
    expected = {} if method in QUANTISED[quant] else {"quantised-base-unfit": "error"}
    assert found(config(method, quant, options=options)) == expected


def test_special_kinds_of_lora(installed):
    assert found(config("lora", "nf4", options={"use_dora": True})) == {}
    assert found(config("lora", "int8", options={"use_dora": True})) == {"quantised-base-unfit": "error"}
    assert found(config("lora", options={"init_lora_weights": "pissa"})) == {}
    assert found(config("lora", "nf4", options={"init_lora_weights": "pissa"})) == {"quantised-base-unfit": "error"}
    assert found(config("lora", options={"init_lora_weights": "corda"})) == {"start-cannot-be-had": "error"}
    assert found(config("lora", options={"init_lora_weights": False})) == {"start-is-random": "warning"}
    reference = {"reference-is-a-second-copy": "warning"}
    assert found(config("lora", options={"init_lora_weights": "olora"}), REFERENCE) == reference
    assert found(config("lora", options={"bias": "all"}), REFERENCE) == reference


def test_scoring_models_dropout_and_options(installed):
    assert found(config("prefix_tuning"), SCORING) == {"scoring-model-without-head": "error"}
    assert found(config("lora"), SCORING) == {}
    assert found(config("lora", dropout=0.1), ONLINE) == {"dropout-with-rollouts": "error"}
    assert found(config("lora", options={"lora_dropout": 0.1}), ONLINE) == {"dropout-with-rollouts": "error"}
    assert found(config("lora", dropout=0.1)) == {}
    assert found(config("trainable_tokens")) == {"method-needs-option": "error"}
    assert found(config("hra", r=5)) == {"householder-rank-is-odd": "error"}
    assert found(config("hra", r=6)) == {}


def test_stages_after_an_adapter_that_cannot_merge(installed):
    assert check_chain(config("lora"), "sft") is None and check_chain(config(), "sft") is None
    finding = check_chain(config("lily"), "sft")
    assert finding is not None and "'sft'" in finding.message and UNMERGEABLE["lily"] in finding.message


@pytest.mark.parametrize("method", sorted(FAILING))
def test_methods_that_do_not_train_are_refused_with_the_reason(installed, method):
    [finding, *_] = check_combinations(config(method), OFFLINE)
    assert finding.level == "error" and FAILING[method] in finding.message and "peft=lora" in finding.mend


def test_methods_that_were_never_tried_cost_a_warning(installed):
    assert found(config("adamss")) == {"method-not-proven": "warning", "method-needs-package": "error"}
    installed.add("sklearn")
    assert found(config("adamss")) == {"method-not-proven": "warning"}


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
        assert "{" not in rule.message.format(
            method="m", quant="q", engine="e", reason="r", option="o", package="p", start="s", bad_init="b",
            unmergeable="u", length="l", new_tokens="n", stage_new_tokens="t",
        )  # fmt: skip
