"""What may combine with what: adapter method × quantization × stage × rollout engine × runtime, in one table.

Torch-free. The plan shows its warnings, the launcher refuses its errors, `doctor` prints it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.registry import importable, install_hint
from core.schema import Quant, RunConfig
from core.specs import StageSpec

DISTRIBUTION = "preftune"

PROMPT_LEARNING = frozenset(
    {"prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning", "cpt", "cartridge"}
)
"""Methods that train virtual tokens, not weights: there is nothing to merge."""

FAILING = {
    "trainable_tokens": "it cannot adapt an output layer that shares its weights with the embeddings",
    "adaption_prompt": "its attention wrapper does not fit the attention of current transformers models",
    "xlora": "it mixes adapters that were trained before, and trains none by itself",
    "poly": "it needs a task id for every record, which records do not carry",
    "multitask_prompt_tuning": "it needs a task id for every record, which records do not carry",
}
"""Methods of peft that are known not to train here, and why."""

PROVEN = frozenset(
    {
        "none", "lora", "adalora", "vera", "loha", "lokr", "oft", "boft", "ia3", "ln_tuning", "fourierft", "hra",
        "vblora", "miss", "randlora", "shira", "prompt_tuning", "p_tuning", "prefix_tuning",
    }
)  # fmt: skip
"""Methods that were seen to train, save and reload."""


@dataclass(frozen=True)
class Finding:
    """A rule that a configuration breaks."""

    name: str
    level: str
    """error or warning."""
    message: str
    mend: str


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    name: str
    applies: Callable[[RunConfig, StageSpec], bool]
    level: str
    message: str
    """May hold {method}, {quant}, {engine}, {reason}."""
    mend: str = ""


def _quant(cfg: RunConfig) -> bool:
    return cfg.quant != Quant.none


def _adapter(cfg: RunConfig) -> bool:
    return cfg.peft.method != "none"


def _engine(cfg: RunConfig, spec: StageSpec, name: str) -> bool:
    return spec.rollouts and getattr(cfg.rollout, "name", "") == name


def _idle_settings(cfg: RunConfig) -> bool:
    peft = cfg.peft
    return not _adapter(cfg) and (
        any(value is not None for value in (peft.r, peft.alpha, peft.dropout, peft.targets)) or bool(peft.options)
    )


RULES: tuple[Rule, ...] = (
    Rule(
        "quantised-base-needs-adapter",
        lambda cfg, _: _quant(cfg) and not _adapter(cfg),
        "error",
        "quant={quant} stores the base weights in a form that cannot be trained, and no adapter is chosen",
        "add peft=lora (QLoRA), or set quant=none",
    ),
    Rule(
        "quantisation-needs-bitsandbytes",
        lambda cfg, _: _quant(cfg) and not importable("bitsandbytes"),
        "error",
        "quant={quant} needs the package 'bitsandbytes', which is not installed",
        install_hint("bitsandbytes", DISTRIBUTION),
    ),
    Rule(
        "adapter-needs-peft",
        lambda cfg, _: _adapter(cfg) and not importable("peft"),
        "error",
        "peft={method} needs the package 'peft', which is not installed",
        "pip install peft",
    ),
    Rule(
        "adapter-settings-without-adapter",
        lambda cfg, _: _idle_settings(cfg),
        "error",
        "peft.method is 'none', so peft.r, peft.alpha, peft.dropout, peft.targets and peft.options have no effect",
        "add peft=lora (or another method), or leave them out",
    ),
    Rule(
        "method-does-not-train",
        lambda cfg, _: cfg.peft.method in FAILING,
        "error",
        "peft method '{method}' does not train here: {reason}",
        "choose another method, e.g. peft=lora",
    ),
    Rule(
        "method-not-proven",
        lambda cfg, _: cfg.peft.method not in PROVEN and cfg.peft.method not in FAILING,
        "warning",
        "peft method '{method}' was never tried here; its artifact is verified like any other",
    ),
    Rule(
        "virtual-tokens-cannot-reach-vllm",
        lambda cfg, spec: _engine(cfg, spec, "vllm") and cfg.peft.method in PROMPT_LEARNING,
        "error",
        "peft method '{method}' trains virtual tokens, which cannot be merged into weights for rollout=vllm",
        "use rollout=transformers",
    ),
    Rule(
        "virtual-tokens-cannot-merge",
        lambda cfg, _: cfg.peft.merge and cfg.peft.method in PROMPT_LEARNING,
        "error",
        "peft.merge=true cannot be done for '{method}': it trains virtual tokens, not weights",
        "set peft.merge=false",
    ),
    Rule(
        "vllm-not-installed",
        lambda cfg, spec: _engine(cfg, spec, "vllm") and not importable("vllm"),
        "error",
        "rollout=vllm needs the package 'vllm', which is not installed",
        "use rollout=transformers, or " + install_hint("vllm", DISTRIBUTION),
    ),
    Rule(
        "quantised-merge-for-vllm",
        lambda cfg, spec: _quant(cfg) and _adapter(cfg) and _engine(cfg, spec, "vllm"),
        "warning",
        "merging an adapter into {quant} weights for rollout=vllm rounds them; the drift check may need a wider bound",
        "use rollout=transformers, or quant=none",
    ),
    Rule(
        "quantised-merge",
        lambda cfg, _: _quant(cfg) and cfg.peft.merge,
        "warning",
        "merging an adapter into {quant} weights rounds them: the merged model differs a little from the trained one",
        "keep the adapter apart: peft.merge=false",
    ),
    Rule(
        "merge-without-adapter",
        lambda cfg, _: cfg.peft.merge and not _adapter(cfg),
        "warning",
        "peft.merge=true has no effect without an adapter",
    ),
)
"""Read from top to bottom; every broken rule is reported."""


def check_combinations(cfg: RunConfig, spec: StageSpec) -> list[Finding]:
    """The rules that this configuration breaks for this stage, in the order of the table."""
    values = {
        "method": cfg.peft.method,
        "quant": cfg.quant.value,
        "engine": getattr(cfg.rollout, "name", ""),
        "reason": FAILING.get(cfg.peft.method, ""),
    }
    return [
        Finding(rule.name, rule.level, rule.message.format(**values), rule.mend)
        for rule in RULES
        if rule.applies(cfg, spec)
    ]
