"""What may combine with what: adapter method × quantization × stage × rollout engine × runtime, in one table.

Torch-free. The plan shows its warnings, the launcher refuses its errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.platform.installing import importable, install_hint
from core.platform.specs import StageSpec
from core.settings.schema import PeftConfig, Quant, RunConfig

DISTRIBUTION = "preftune"

PROMPT_LEARNING = frozenset(
    {"prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning", "cpt", "cartridge"}
)
"""Methods that train virtual tokens, not weights: there is nothing to merge."""

_VIRTUAL = "it trains virtual tokens, not weights"

UNMERGEABLE = {
    **dict.fromkeys(sorted(PROMPT_LEARNING), _VIRTUAL),
    "beft": "it trains biases, which most models' layers do not have",
    "lily": "its weight depends on the input",
}
"""Methods whose result no plain model can hold, and why. They are saved as adapters alone, and no stage follows."""

FAILING = {
    "adaption_prompt": "its attention wrapper does not fit the attention of current transformers models",
    "xlora": "it mixes adapters that were trained before, and trains none by itself",
    "poly": "it needs a task id for every record, which records do not carry",
    "multitask_prompt_tuning": "it needs a task id for every record, which records do not carry",
    "shadow": "it runs a second model beside the whole forward pass, which packed rows do not take",
    "cpt": "its token types and its loss belong to peft's own forward pass, which no stage uses",
}
"""Methods of peft that are known not to train here, and why."""

PROVEN = frozenset(
    {
        "none", "lora", "adalora", "beft", "boft", "c3a", "cartridge", "deft", "delora", "fourierft", "frod", "glora",
        "gralora", "hira", "hra", "ia3", "lily", "ln_tuning", "loha", "lokr", "miss", "oft", "osf", "p_tuning",
        "peanut",
        "prefix_tuning", "prompt_tuning", "psoft", "pvera", "randlora", "road", "shira", "supertuning",
        "tinylora", "trainable_tokens", "unilora", "vblora", "vera", "waveft",
    }
)  # fmt: skip
"""Methods that were seen to train, save, reload and (unless UNMERGEABLE) merge: tests/core/test_adapters.py."""

NEEDED_OPTIONS = {"trainable_tokens": "token_indices"}
"""Methods with an option that has no usable default."""

NEEDED_PACKAGES = {"adamss": ("sklearn", "scikit-learn")}
"""Methods that import a package which preftune does not bring: (import name, distribution)."""

NEEDED_BY = {"bitsandbytes": ("quant=nf4", "quant=int8"), "math-verify": ("reward=numeric",)}
"""What cannot be had without a distribution, beside what a registered part says itself."""

NO_HEAD = frozenset({"trainable_tokens"})
"""Methods that would leave the new head of a scoring model untrained and unsaved."""

QUANTISED = {
    "nf4": frozenset(
        {
            "lora", "adalora", "boft", "fourierft", "hira", "lily", "ln_tuning", "miss", "oft", "prefix_tuning",
            "prompt_tuning", "p_tuning", "pvera", "road", "shira", "trainable_tokens", "vblora", "vera",
            "waveft",
        }
    ),
    "int8": frozenset(
        {
            "lora", "boft", "fourierft", "hira", "lily", "ln_tuning", "loha", "lokr", "miss", "oft", "prefix_tuning",
            "prompt_tuning", "p_tuning", "trainable_tokens", "vblora", "vera", "waveft",
        }
    ),
}  # fmt: skip
"""Methods that were seen to train on quantised base weights in fp32 and in bf16, and to merge out of them exactly.
The others fail inside peft: on the packed weight's shape, or on mixed number formats in bf16 (IA3, RandLoRA)."""

BASE_CHANGING = ("pissa", "olora")
"""Values of init_lora_weights that take the adapter's start out of the base weights."""

FAILING_INITS = {
    "pissa_niter_": "its decomposition is drawn at random, so that a reloaded adapter would find another base",
    "corda": "it needs a pass over data before the adapter is made",
    "eva": "it needs a pass over data before the adapter is made",
    "lora_ga": "it needs gradients before the adapter is made",
    "loftq": "it replaces the base weights by quantised ones of its own",
}
"""Values of init_lora_weights (or their beginnings) that do not work here, and why."""


def changes_base(peft: PeftConfig) -> bool:
    """Whether the model with its adapter off is not the model that it started from."""
    options = peft.options
    start = options.get("init_lora_weights")
    return start in BASE_CHANGING or options.get("bias", "none") not in ("none", None)


def has_dropout(peft: PeftConfig) -> bool:
    """Whether the adapter drops units out."""
    return bool(peft.dropout) or any(bool(value) for name, value in peft.options.items() if name.endswith("dropout"))


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
    """May hold {method}, {quant}, {engine}, {reason}, {option}, {package}, {start}, {bad_init}, {unmergeable},
    {length}, {new_tokens}, {stage_new_tokens}."""
    mend: str = ""


def _quant(cfg: RunConfig) -> bool:
    return cfg.quant != Quant.none


def _adapter(cfg: RunConfig) -> bool:
    return cfg.peft.method != "none"


def _engine(cfg: RunConfig, spec: StageSpec, name: str) -> bool:
    return spec.samples and getattr(cfg.rollout, "name", "") == name


def _scores(spec: StageSpec) -> bool:
    """Whether the stage trains a scoring model."""
    return spec.makes == "reward_model" or "value_model" in spec.roles


def _bad_init(cfg: RunConfig) -> str:
    """Why the chosen start of a LoRA cannot be had; empty when it can."""
    start = str(cfg.peft.options.get("init_lora_weights", ""))
    return next((reason for name, reason in FAILING_INITS.items() if start.startswith(name)), "")


def _missing_package(cfg: RunConfig) -> str:
    """Distribution that the method needs and that is not there; empty when there is none."""
    name, distribution = NEEDED_PACKAGES.get(cfg.peft.method, ("", ""))
    return distribution if name and not importable(name) else ""


def _unfit_for_quantisation(cfg: RunConfig) -> bool:
    if not (_quant(cfg) and _adapter(cfg)):
        return False
    dora = bool(cfg.peft.options.get("use_dora")) and cfg.quant is Quant.int8
    return dora or changes_base(cfg.peft) or cfg.peft.method not in QUANTISED[cfg.quant.value]


def _idle_settings(cfg: RunConfig) -> bool:
    peft = cfg.peft
    return not _adapter(cfg) and (
        any(value is not None for value in (peft.r, peft.alpha, peft.dropout, peft.targets)) or bool(peft.options)
    )


def _stage_new_tokens(cfg: RunConfig) -> int:
    """Longest completion that the stage itself samples; 0 where it samples none."""
    return int(getattr(cfg.stage, "max_new_tokens", 0) or 0)


RULES: tuple[Rule, ...] = (
    Rule(
        "no-room-for-held-out-prompts",
        lambda cfg, spec: spec.makes == "policy" and cfg.eval.max_new_tokens >= cfg.model.max_length,
        "error",
        "eval.max_new_tokens={new_tokens} leaves no room for a prompt in model.max_length={length}",
        "lower eval.max_new_tokens, or raise model.max_length as far as the model's own context goes",
    ),
    Rule(
        "no-room-for-prompts",
        lambda cfg, spec: spec.rollouts and _stage_new_tokens(cfg) >= cfg.model.max_length,
        "error",
        "stage.max_new_tokens={stage_new_tokens} leaves no room for a prompt in model.max_length={length}",
        "lower stage.max_new_tokens, or raise model.max_length as far as the model's own context goes",
    ),
    Rule(
        "no-room-for-own-answers",
        lambda cfg, spec: spec.builds and _stage_new_tokens(cfg) >= cfg.model.max_length,
        "warning",
        "stage.max_new_tokens={stage_new_tokens} leaves no room for a prompt in model.max_length={length}: the model "
        "itself answers none",
        "lower stage.max_new_tokens, or raise model.max_length as far as the model's own context goes",
    ),
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
        "method-needs-option",
        lambda cfg, _: cfg.peft.method in NEEDED_OPTIONS and not cfg.peft.options.get(NEEDED_OPTIONS[cfg.peft.method]),
        "error",
        "peft method '{method}' needs peft.options.{option}",
        "set peft.options.{option}=…",
    ),
    Rule(
        "method-needs-package",
        lambda cfg, _: bool(_missing_package(cfg)),
        "error",
        "peft method '{method}' needs the package '{package}', which is not installed",
        "pip install {package}",
    ),
    Rule(
        "start-cannot-be-had",
        lambda cfg, _: bool(_bad_init(cfg)),
        "error",
        "peft.options.init_lora_weights={start} cannot be had: {bad_init}",
        "use pissa, olora, gaussian or orthogonal, or leave it unset",
    ),
    Rule(
        "start-is-random",
        lambda cfg, _: any(cfg.peft.options.get(name) is False for name in ("init_lora_weights", "init_weights")),
        "warning",
        "the adapter starts at random, so training does not start from the model that was named",
        "leave init_lora_weights and init_weights unset",
    ),
    Rule(
        "householder-rank-is-odd",
        lambda cfg, _: cfg.peft.method == "hra" and (cfg.peft.r or cfg.peft.options.get("r", 8)) % 2 == 1,
        "error",
        "peft method 'hra' with an odd rank does not start from the model that was named: its reflections cancel in "
        "pairs",
        "set an even peft.r",
    ),
    Rule(
        "reference-is-a-second-copy",
        lambda cfg, spec: changes_base(cfg.peft) and "reference" in spec.roles,
        "warning",
        "this adapter changes the base weights too, so the reference is a second copy of the model in memory",
        "to save it, leave peft.options.init_lora_weights and peft.options.bias unset",
    ),
    Rule(
        "quantised-base-unfit",
        lambda cfg, _: _unfit_for_quantisation(cfg),
        "error",
        "this kind of '{method}' does not work on {quant} weights",
        "use peft=lora without special start (DoRA with quant=nf4 only), or quant=none",
    ),
    Rule(
        "scoring-model-without-head",
        lambda cfg, spec: _scores(spec) and cfg.peft.method in PROMPT_LEARNING | NO_HEAD,
        "error",
        "peft method '{method}' cannot train a scoring model, which this stage has",
        "choose another method, e.g. peft=lora",
    ),
    Rule(
        "dropout-with-rollouts",
        lambda cfg, spec: _adapter(cfg) and has_dropout(cfg.peft) and spec.rollouts,
        "error",
        "adapter dropout would make the trained policy another one than that which sampled",
        "leave peft.dropout unset for stages with rollouts",
    ),
    Rule(
        "adapter-cannot-reach-engine",
        lambda cfg, spec: _engine(cfg, spec, "vllm") and cfg.peft.method in UNMERGEABLE,
        "error",
        "peft method '{method}' cannot be merged into weights for rollout=vllm: {unmergeable}",
        "use rollout=transformers",
    ),
    Rule(
        "adapter-cannot-merge",
        lambda cfg, _: cfg.peft.merge and cfg.peft.method in UNMERGEABLE,
        "error",
        "peft.merge=true cannot be done for '{method}': {unmergeable}",
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
        "option": NEEDED_OPTIONS.get(cfg.peft.method, ""),
        "package": _missing_package(cfg),
        "start": str(cfg.peft.options.get("init_lora_weights", "")),
        "bad_init": _bad_init(cfg),
        "unmergeable": UNMERGEABLE.get(cfg.peft.method, ""),
        "length": cfg.model.max_length,
        "new_tokens": cfg.eval.max_new_tokens,
        "stage_new_tokens": _stage_new_tokens(cfg),
    }
    return [
        Finding(rule.name, rule.level, rule.message.format(**values), rule.mend.format(**values))
        for rule in RULES
        if rule.applies(cfg, spec)
    ]


def check_chain(cfg: RunConfig, parent: str) -> Finding | None:
    """Why this adapter cannot be trained on in a stage after the stage `parent`; None when it can."""
    reason = UNMERGEABLE.get(cfg.peft.method, "")
    if not reason:
        return None
    return Finding(
        "adapter-cannot-go-on",
        "error",
        f"the stage before this one, '{parent}', would leave a '{cfg.peft.method}' adapter, which cannot be merged "
        f"into the weights to start from: {reason}",
        "run one stage alone (pipeline.stages=[STAGE]), or choose another method, e.g. peft=lora",
    )
