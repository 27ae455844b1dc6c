"""What is raced: the tasks and their contenders. Torch-free.

A task fixes what every contender must share (rows of a step, lengths, learning rate, KL weight); a contender says
how it does the work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One way to do a task's steps.

    side: "ours" or "trl". options: for ours, overrides of the command line; for TRL, see `trl_side.py`.
    """

    name: str
    side: str
    about: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a step is. `batch` counts rows, pairs or prompts; `group` completions of a prompt."""

    name: str
    batch: int
    lr: float
    about: str
    contenders: tuple[Contender, ...]
    max_length: int = 512
    group: int = 1
    new_tokens: int = 0
    kl: float = 0.0

    @property
    def overrides(self) -> list[str]:
        """The task for preftune's command line, without data and model."""
        common = [
            f"stage.batch_size={self.batch}", f"stage.lr={self.lr}", "stage.schedule=constant",
            "stage.warmup_frac=0", f"model.max_length={self.max_length}", "peft=none", "tracker=none", "reuse=false",
            "data.heldout_frac=0", "data.max_bad_frac=1", "eval.max_items=0", "runtime.device=cpu",
        ]  # fmt: skip
        if self.name == "sft":
            return ["stage=sft", *common]
        first = ["stage=rlhf", "pipeline.stages=[rlhf]"]
        if self.name == "dpo":
            return [*first, "algorithm=dpo", f"stage.beta={self.kl}", *common]
        return [
            *first, f"stage.group_size={self.group}", f"stage.max_new_tokens={self.new_tokens}",
            f"stage.kl_coef={self.kl}", "reward=length", f"reward.target_chars={TARGET_CHARS}", *common,
        ]  # fmt: skip


TARGET_CHARS = 80
"""The rule that rewards rollouts: nearness of the completion's length to this many characters."""

FULL = {"dtype": "float32"}
"""TRL's default: fp32 weights, bf16 autocast."""
HALF = {"dtype": "bfloat16", "bf16": False}
"""bf16 weights and no autocast."""
FAST = {"gradient_checkpointing": False}

TASKS = {
    "sft": Task(
        "sft", batch=8, lr=2e-5, about="full fine-tuning, 8 rows a step, at most 512 tokens a row",
        contenders=(
            Contender("preftune", "ours", "fp32 master weights, bf16 compute", {"overrides": []}),
            Contender("trl default", "trl", "SFTTrainer as it comes: fp32 weights, bf16 autocast, gradient "
                      "checkpointing", {**FULL}),
            Contender("trl fp32 tuned", "trl", "fp32 weights, bf16 autocast, no gradient checkpointing, rows grouped "
                      "by length", {**FULL, **FAST, "grouped": True}),
            Contender("trl bf16 tuned", "trl", "bf16 weights, no gradient checkpointing, rows grouped by length",
                      {**HALF, **FAST, "grouped": True}),
            Contender("trl bf16 packed", "trl", "bf16 weights, no gradient checkpointing, padding_free=True",
                      {**HALF, **FAST, "padding_free": True}),
        ),
    ),
    "dpo": Task(
        "dpo", batch=4, lr=1e-6, kl=0.1, about="full fine-tuning, 4 pairs a step, at most 512 tokens a side",
        contenders=(
            Contender("preftune", "ours", "fp32 master weights, bf16 compute", {"overrides": []}),
            Contender("trl default", "trl", "DPOTrainer as it comes: fp32 weights, bf16 autocast, gradient "
                      "checkpointing", {**FULL}),
            Contender("trl fp32 tuned", "trl", "fp32 weights, bf16 autocast, no gradient checkpointing, pairs grouped "
                      "by length", {**FULL, **FAST, "grouped": True}),
            Contender("trl bf16 tuned", "trl", "bf16 weights, no gradient checkpointing, pairs grouped by length",
                      {**HALF, **FAST, "grouped": True}),
        ),
    ),
    "rloo": Task(
        "rloo", batch=16, group=4, new_tokens=24, lr=1e-5, kl=0.05, max_length=256,
        about="one iteration: 16 prompts × 4 completions of exactly 24 tokens, rule reward, one update",
        contenders=(
            Contender("preftune, vllm", "ours", "RLOO, rollouts by vLLM",
                      {"overrides": ["algorithm=rloo", "rollout=vllm"]}),
            Contender("preftune, transformers", "ours", "RLOO, rollouts by the policy module",
                      {"overrides": ["algorithm=rloo", "rollout=transformers"]}),
            Contender("trl default, vllm", "trl", "RLOOTrainer as it comes (8 completions a micro-batch), vLLM "
                      "colocated and patched for CPU", {**FULL, "vllm": True, "micro_batch": 8}),
            Contender("trl default, transformers", "trl", "the same, rollouts by model.generate",
                      {**FULL, "micro_batch": 8}),
            Contender("trl bf16 tuned, vllm", "trl", "bf16 weights, no gradient checkpointing, 32 completions a "
                      "micro-batch, vLLM colocated and patched for CPU",
                      {**HALF, **FAST, "vllm": True, "micro_batch": 32}),
            Contender("trl bf16 tuned, transformers", "trl", "the same, rollouts by model.generate",
                      {**HALF, **FAST, "micro_batch": 32}),
            Contender("preftune PPO, vllm", "ours", "PPO with a value model, 2 updates; TRL has no PPO",
                      {"overrides": ["algorithm=ppo", "rollout=vllm"]}),
        ),
    ),
}  # fmt: skip
