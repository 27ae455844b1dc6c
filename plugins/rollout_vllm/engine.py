"""vLLM in the training process.

vLLM expects to own its process. What it changes in ours is put back or fenced off here: torch's thread count and
`torch.set_num_threads`, the global random states, a few environment variables that child processes would inherit,
the log level, and on shutdown the trainer's process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import random
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from core.api import PluginError, Rollout, Sampling, TrainingError
from core.torch_api import Start
from plugins.rollout_vllm import VllmRolloutConfig
from plugins.shared.sampling import check_prompts, draw, request_seed, uniforms

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Set before vLLM is imported, unless the user set them. The engine core must stay in this process."""

LEAKING = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LOCAL_WORLD_SIZE", "NUMEXPR_MAX_THREADS")
"""Variables that vLLM sets and that would change how child processes or accelerate behave; put back after start."""

VLLM_DTYPES: dict[str, Any] = {"fp32": "float32", "bf16": "bfloat16"}
HEAD = "lm_head.weight"
EMBEDDING_ENDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def build(config: VllmRolloutConfig, start: Start, module: nn.Module) -> VllmEngine:
    """Engine from the plain checkpoint that the policy starts from, in its number format and with the run's seed; the
    weights of `module` come with the first sync.

    Raises: PluginError when vLLM does not import or start, or when several processes run and their process group
    does not stand yet.
    """
    runtime = start.cfg.runtime
    dtype = "fp32" if runtime.dtype == "fp32" else "bf16"
    return VllmEngine(config, start.plain, dtype, runtime.seed, start.max_length, unused_names(module))


class VllmEngine:
    """RolloutEngine over vllm.LLM.

    folder: config.json and safetensors weights of a plain transformers model; no tokenizer is read.
    dtype: `fp32` or `bf16`.
    max_sequence_tokens: longest prompt plus completion, in tokens.
    unused: patterns of weights in the folder that the model does not use, so that no sync brings them.

    `generate` starts with an empty prefix cache, so that its result depends on weights, prompts and sampling alone
    and not on what ran before: a resumed run draws the same tokens as one that was never stopped.
    """

    name = "vllm"

    def __init__(
        self,
        config: VllmRolloutConfig,
        folder: Path,
        dtype: str,
        seed: int,
        max_sequence_tokens: int,
        unused: Sequence[str] = (),
    ) -> None:
        self._max_sequence_tokens = max_sequence_tokens
        self._version = 0
        self._expected = {
            name for name in checkpoint_names(folder) if not any(re.search(pattern, name) for pattern in unused)
        }
        self._tied = bool(json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", False))
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self._shares_group = torch.distributed.is_initialized()
        if world_size > 1 and not self._shares_group:
            raise PluginError(
                f"vLLM was asked to start before the process group of {world_size} processes stands",
                where="rollout=vllm",
                mend="create accelerate.Accelerator() first, or take rollout=transformers",
            )
        with _fenced():
            self._llm: Any = _start(config, folder, dtype, seed, max_sequence_tokens)
        self._cheapen_sampler()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Rollout]:
        """Completions in the order of the prompts, the n of one prompt side by side.

        Log-probabilities are float32 nats under temperature and truncation, see plugins.shared.sampling.
        Raises: DataError for an empty or too long prompt; TrainingError after `close`.
        """
        from vllm import SamplingParams

        check_prompts(prompts, sampling.max_new_tokens, self._max_sequence_tokens, self.name)
        parameters = [
            SamplingParams(
                n=sampling.n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=request_seed(sampling.seed, index),
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=list(sampling.stop_token_ids),
                ignore_eos=True,  # stop_token_ids alone decide
                logprobs=0,
                detokenize=False,
            )
            for index in range(len(prompts))
        ]
        stop = frozenset(sampling.stop_token_ids)
        return [
            Rollout(
                prompt_ids=list(prompts[index]),
                completion_ids=list(completion.token_ids),
                logprobs=[
                    places[token].logprob
                    for token, places in zip(completion.token_ids, completion.logprobs, strict=True)
                ],
                finished=bool(completion.token_ids) and completion.token_ids[-1] in stop,
                policy_version=self._version,
                prompt_index=index,
            )
            for index, output in enumerate(self._run(prompts, parameters))
            for completion in sorted(output.outputs, key=lambda completion: completion.index)
        ]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probability (float32 log-softmax, nats) of each token but the first, given those before it.

        vLLM never takes these from the prefix cache. Raises: DataError for an empty or too long sequence;
        TrainingError after `close`.
        """
        from vllm import SamplingParams

        check_prompts(sequences, 0, self._max_sequence_tokens, self.name)
        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        return [
            [places[token].logprob for token, places in zip(sequence[1:], output.prompt_logprobs[1:], strict=True)]
            for sequence, output in zip(sequences, self._run(sequences, [parameters] * len(sequences)), strict=True)
        ]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take the policy's merged weights, in any number format, under their names in the checkpoint.

        vLLM repacks linear weights for its CPU kernels, so they are reloaded, not copied; and a tied head holds a
        packed copy of its own, so that the embedding is handed in under the head's name too.
        Raises: TrainingError when a weight of the checkpoint is missing or an unknown one is given; the engine must
        not be used then.
        """
        llm = self._open()
        given: set[str] = set()
        self._forget_packed_experts()
        with _own_randomness():
            llm.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": engine_weights(weights, self._tied, given)}
            )
        self._check_names(given)
        llm.reset_prefix_cache()
        self._version = version

    def close(self) -> None:
        """Give memory back. Safe to call twice; another engine can be built afterwards."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        with _keeping_process_group() if self._shares_group else contextlib.nullcontext():
            llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _trim_heap()

    def _open(self) -> Any:
        if self._llm is None:
            raise TrainingError("the rollout engine was closed", where=f"rollout={self.name}", mend="build it again")
        return self._llm

    def _run(self, prompts: Sequence[Sequence[int]], parameters: list[Any]) -> list[Any]:
        llm = self._open()
        llm.reset_prefix_cache()
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        if not requests:
            return []
        with _own_randomness():
            return llm.generate(requests, parameters, use_tqdm=False)

    def _forget_packed_experts(self) -> None:
        """On CPU, let the stacked weights of experts be packed again after the reload: vLLM packs them at the first
        load alone, and would put later ones, unpacked, in their place."""
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            for layer in self._runner().get_model().modules():
                method: Any = getattr(layer, "quant_method", None)
                if getattr(method, "moe_kernel", None) is not None:
                    method.moe_kernel = None

    def _runner(self) -> Any:
        """vLLM's own holder of the model."""
        return self._llm.llm_engine.model_executor.driver_worker.worker.model_runner

    def _check_names(self, given: set[str]) -> None:
        head = {HEAD} if self._tied else set()
        missing, unknown = self._expected - given - head, given - self._expected - head
        if missing or unknown:
            raise TrainingError(
                f"the weights do not fit the engine's model: {len(missing)} missing {sorted(missing)[:3]}, "
                f"{len(unknown)} unknown {sorted(unknown)[:3]}",
                where="rollout=vllm",
                mend="merge the adapter and hand in the names that save_pretrained writes",
            )

    def _cheapen_sampler(self) -> None:
        """On CPU, draw with one random number a token instead of one for each word of the vocabulary, and skip the
        ranks, which nobody reads and for which vLLM starts a compiler. Stays away from any other sampler."""
        from vllm.platforms import current_platform
        from vllm.v1.outputs import LogprobsTensors
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        sampler: Any = getattr(self._runner(), "sampler", None)
        if not current_platform.is_cpu() or not hasattr(sampler, "topk_topp_sampler"):
            return

        def sample(
            logits_BV: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            logprobs_BV = apply_top_k_top_p(logits_BV, k, p).log_softmax(-1, dtype=torch.float32)
            rows = range(len(logits_BV))
            return draw(logprobs_BV, uniforms([generators[row] for row in rows])), logprobs_BV

        def gather(logprobs_BV: Tensor, num_logprobs: int, token_ids: Tensor) -> Any:
            if num_logprobs != 0:
                raise PluginError(f"only the taken token's log-probability is kept, not {num_logprobs} more")
            tokens_B1 = token_ids[:, None]
            return LogprobsTensors(
                tokens_B1.to(torch.int32), logprobs_BV.gather(-1, tokens_B1), torch.zeros_like(token_ids)
            )

        sampler.topk_topp_sampler.forward = sample
        sampler.gather_logprobs = gather


def unused_names(module: nn.Module) -> list[str]:
    """Patterns of the checkpoint's names that transformers leaves out when it loads the model."""
    base: Any = module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]
    return [*(getattr(base, "_keys_to_ignore_on_load_unexpected", None) or ()), r"rotary_emb\.inv_freq"]


def checkpoint_names(folder: Path) -> set[str]:
    """Names of the weights in the folder's safetensors files."""
    names: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    if not names:
        raise PluginError(
            f"no safetensors weights in {folder}", where="rollout=vllm", mend="write the checkpoint before the engine"
        )
    return names


def engine_weights(weights: Iterable[tuple[str, Tensor]], tied: bool, given: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The weights as vLLM must be given them, detached; with `tied` embeddings the head follows from the embedding.

    given: filled with the names that passed.
    """
    for name, tensor in weights:
        given.add(name)
        if tied and name == HEAD:
            continue
        yield name, tensor.detach()
        if tied and name.endswith(EMBEDDING_ENDINGS):
            yield HEAD, tensor.detach()


def _start(config: VllmRolloutConfig, folder: Path, dtype: str, seed: int, max_sequence_tokens: int) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import LLM
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        longest = max_sequence_tokens + 1  # scoring a full sequence draws one token more
        device: dict[str, Any]
        if on_cpu:
            # Where vLLM cuts a prompt in two passes, it turns the random state of a seeded request back, which a CPU's
            # cannot do. So a prompt that does not fit into this pass waits for the next, and each fits into one.
            device = {
                "kv_cache_memory_bytes": int(config.kv_cache_gb * 2**30),
                "block_size": config.block_tokens,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(config.prefill_tokens, longest),
            }
        else:
            device = {
                "gpu_memory_utilization": config.gpu_memory_utilization,
                "max_num_batched_tokens": config.prefill_tokens,
            }
            if torch.distributed.is_initialized():
                device["distributed_executor_backend"] = "external_launcher"  # each process on the GPU of its rank
        return LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            generation_config="vllm",
            dtype=VLLM_DTYPES[dtype],
            seed=seed,
            enforce_eager=config.enforce_eager or on_cpu,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            max_model_len=longest,
            max_num_seqs=config.max_batch,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **device,
        )
    except Exception as error:
        gc.unfreeze()
        raise PluginError(
            f"vLLM did not start: {type(error).__name__}: {error}",
            where=f"rollout=vllm, checkpoint {folder}, dtype {dtype}",
            mend="take rollout=transformers; if the cache is too small for one sequence, raise rollout.kv_cache_gb",
        ) from error


@contextmanager
def _fenced() -> Iterator[None]:
    """Put back what starting vLLM changes in the process, and keep its start-up quiet."""
    threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    environment = {name: os.environ.get(name) for name in LEAKING}
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), _own_randomness():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"))
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if affinity is not None and os.sched_getaffinity(0) != affinity:
            os.sched_setaffinity(0, affinity)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        # vLLM freezes the heap, the trainer's objects included, out of reach of the garbage collector.
        gc.unfreeze()


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave the global random states of Python, numpy and torch as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _keeping_process_group() -> Iterator[None]:
    """vLLM's shutdown destroys the default process group, which here is the trainer's: drop only vLLM's own."""
    from vllm.distributed import parallel_state

    original = parallel_state.destroy_distributed_environment

    def destroy_own_groups() -> None:
        if parallel_state._WORLD is not None:
            parallel_state._WORLD.destroy()
        parallel_state._WORLD = None
        parallel_state._NODE_COUNT = None

    parallel_state.destroy_distributed_environment = destroy_own_groups
    try:
        yield
    finally:
        parallel_state.destroy_distributed_environment = original


def _trim_heap() -> None:
    """Hand freed memory back to the system; glibc keeps about 300 MB of a closed engine otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
