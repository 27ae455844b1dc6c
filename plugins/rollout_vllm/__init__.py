"""Rollouts by vLLM inside the training process: paged attention, prefix caching, weights handed over in memory."""

from __future__ import annotations

from dataclasses import dataclass

from core.api import EngineSpec, RolloutConfig, hookimpl, require


@dataclass
class VllmRolloutConfig(RolloutConfig):
    """Options of `rollout=vllm`."""

    kv_cache_gb: float = 0.25
    """Key-value cache on CPU, in GiB; memory is used as it fills."""
    gpu_memory_utilization: float = 0.3
    """Share of the GPU's memory that vLLM may take, weights included; the rest is the trainer's."""
    enforce_eager: bool = True
    """Run without compilation or CUDA graphs; false is for GPU only, on CPU weight syncs need eager mode."""
    max_batch: int = 256
    """Most sequences decoded at once."""
    prefill_tokens: int = 4096
    """Most tokens in one pass of the engine. A longer prompt is cut into such chunks on GPU, and has its own pass on
    CPU."""
    block_tokens: int = 32
    """Tokens in one block of the key-value cache; prompts share whole blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kv_cache_gb > 0, "rollout.kv_cache_gb", "> 0", self.kv_cache_gb)
        require(
            0 < self.gpu_memory_utilization <= 1,
            "rollout.gpu_memory_utilization",
            "in (0, 1]",
            self.gpu_memory_utilization,
        )
        require(self.max_batch > 0, "rollout.max_batch", "> 0", self.max_batch)
        require(
            self.prefill_tokens >= self.max_batch,
            "rollout.prefill_tokens",
            f"at least rollout.max_batch={self.max_batch}: each sequence takes a token of a pass",
            self.prefill_tokens,
        )
        require(
            self.block_tokens > 0 and self.block_tokens % 16 == 0,
            "rollout.block_tokens",
            "a positive multiple of 16",
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
