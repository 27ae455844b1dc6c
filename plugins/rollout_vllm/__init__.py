"""Rollouts by vLLM inside the training process: paged attention, prefix caching, weights handed over in memory."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import EngineSpec, RolloutConfig, hookimpl, number, require


@dataclass
class VllmRolloutConfig(RolloutConfig):
    """Options of `rollout=vllm`."""

    kv_cache_gb: float = number(0.25, above=0, at_most=100_000)
    """Key-value cache on CPU, in GiB; memory is used as it fills."""
    gpu_memory_utilization: float = number(0.3, above=0, at_most=1)
    """Share of the GPU's memory that vLLM may take, weights included; the rest is the trainer's."""
    enforce_eager: bool = True
    """Run without compilation or CUDA graphs; false is for GPU only, on CPU weight syncs need eager mode."""
    max_batch: int = number(256, above=0, at_most=1_000_000)
    """Most sequences decoded at once."""
    prefill_tokens: int = number(4096, above=0, at_most=100_000_000)
    """Most tokens in one pass of the engine. A longer prompt is cut into such chunks on GPU, and has its own pass on
    CPU."""
    block_tokens: int = number(32, above=0, at_most=4096)
    """Tokens in one block of the key-value cache; prompts share whole blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.prefill_tokens >= self.max_batch,
            "rollout.prefill_tokens",
            f"at least rollout.max_batch={self.max_batch}: each sequence takes a token of a pass",
            self.prefill_tokens,
        )
        require(
            self.block_tokens % 16 == 0,
            "rollout.block_tokens",
            "a multiple of 16",
            self.block_tokens,
        )


@hookimpl
def register_rollout_engines() -> list[EngineSpec]:
    return [
        EngineSpec(
            name="vllm",
            config=VllmRolloutConfig,
            impl="plugins.rollout_vllm.engine:build",
            summary="vLLM in the training process, weights synced in memory",
            priority=10,
            requires=("vllm",),
        )
    ]
