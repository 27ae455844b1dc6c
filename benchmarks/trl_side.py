"""TRL's side: its trainers on the same token ids, each step held back until its turn.

Options of a contender: dtype (of the weights), bf16 (autocast, TRL's default where unset), gradient_checkpointing,
grouped (rows of like length in one batch), padding_free, vllm, micro_batch (sequences in one pass, for rollouts).
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.gate import Gate
from benchmarks.ours import plain_tokens
from benchmarks.tasks import TARGET_CHARS, TASKS, Task

Rows = list[dict[str, list[int]]]


class Turns(TrainerCallback):
    """Waits before each optimizer step and answers after it. Batches are collated before the wait."""

    def __init__(self, gate: Gate, tokens: list[int]) -> None:
        self.gate, self.tokens = gate, tokens
        self.sampled = 0
        self.clock = (0.0, 0.0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Our turn has to come first."""
        self.sampled = 0
        if not self.gate.wait():
            os._exit(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The optimizer has stepped."""
        self.clock = self.gate.stop_clock()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float],
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """The step's loss is known."""
        if "loss" in logs:
            tokens = self.tokens[state.global_step - 1] + self.sampled
            self.gate.done(self.clock, tokens, float(logs["loss"]), completion_tokens=self.sampled)


def race(job: dict[str, Any], gate: Gate) -> None:
    """Build the task's trainer and let it run, turn by turn."""
    make = {"sft": _sft, "dpo": _dpo, "rloo": _rloo}[job["task"]]
    task, options = TASKS[job["task"]], job["options"]
    steps: list[Rows] = json.loads(Path(job["steps_file"]).read_text())
    if options.get("grouped"):
        steps = grouped(steps)
    turns = Turns(gate, [plain_tokens(task, rows) for rows in steps])
    trainer = make(job, task, options, steps, turns, gate)
    trainer.add_callback(turns)
    gate.ready(torch.get_num_threads())
    trainer.train()


def grouped(steps: list[Rows]) -> list[Rows]:
    """The rows after the warm-up step in batches of like length, the batches in their old places by a fixed shuffle.

    What train_sampling_strategy=group_by_length does, but the warm-up step keeps its rows, so that every contender is
    timed on the same rows.
    """
    import random

    def longest(row: dict[str, list[int]]) -> int:
        return len(row["prompt"]) + max(len(row[key]) for key in row if key != "prompt")

    size = len(steps[0])
    rows = sorted((row for step in steps[1:] for row in step), key=longest)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    random.Random(0).shuffle(batches)
    return [steps[0], *batches]


def _arguments(job: dict[str, Any], task: Task, options: dict[str, Any]) -> dict[str, Any]:
    """What every trainer gets. The optimizer is TRL's default (fused AdamW) with our betas, so that losses compare."""
    arguments = {
        "output_dir": job["folder"], "use_cpu": True, "report_to": "none", "save_strategy": "no", "seed": 17,
        "disable_tqdm": True, "logging_steps": 1, "max_steps": job["steps"], "per_device_train_batch_size": task.batch,
        "learning_rate": task.lr, "lr_scheduler_type": "constant", "adam_beta2": 0.95,
        "model_init_kwargs": {"dtype": options["dtype"]},
    }  # fmt: skip
    for name in ("bf16", "gradient_checkpointing"):
        if name in options:
            arguments[name] = options[name]
    return arguments


def _sft(job: dict[str, Any], task: Task, options: dict[str, Any], steps: list[Rows], turns: Turns, gate: Gate) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    gate.imported()
    rows = [
        {"input_ids": row["prompt"] + row["completion"], "labels": [-100] * len(row["prompt"]) + row["completion"]}
        for step in steps
        for row in step
    ]
    free = bool(options.get("padding_free"))
    args = SFTConfig(
        **_arguments(job, task, options), train_sampling_strategy="sequential", padding_free=free,
        max_length=None if free else task.max_length, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    return SFTTrainer(job["model"], args=args, train_dataset=Dataset.from_list(rows), processing_class=_tokenizer(job))


def _dpo(job: dict[str, Any], task: Task, options: dict[str, Any], steps: list[Rows], turns: Turns, gate: Gate) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        """Rows are token ids already."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    gate.imported()
    rows = [{f"{key}_ids": ids for key, ids in row.items()} for step in steps for row in step]
    args = DPOConfig(
        **_arguments(job, task, options), train_sampling_strategy="sequential", beta=task.kl,
        max_length=task.max_length,
    )  # fmt: skip
    return Tokenized(job["model"], args=args, train_dataset=Dataset.from_list(rows), processing_class=_tokenizer(job))


def _rloo(job: dict[str, Any], task: Task, options: dict[str, Any], steps: list[Rows], turns: Turns, gate: Gate) -> Any:
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    vllm = bool(options.get("vllm"))
    if vllm:
        patch_vllm(job["model"])
    gate.imported()
    tokenizer = _tokenizer(job)
    prompts = [row["prompt"] for step in steps for row in step]
    texts = tokenizer.batch_decode(prompts)
    if tokenizer(texts)["input_ids"] != prompts:
        raise ValueError("the prompts do not come back from their text: TRL would work on other tokens")

    def nearness(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        turns.sampled += sum(len(ids) for ids in completion_ids)
        return [max(0.0, 1 - abs(len(text) - TARGET_CHARS) / TARGET_CHARS) for text in completions]

    total = task.batch * task.group
    full_length = {"ignore_eos": True} if vllm else {"min_new_tokens": task.new_tokens}
    arguments = _arguments(job, task, options) | {
        "per_device_train_batch_size": options["micro_batch"],
        "gradient_accumulation_steps": total // options["micro_batch"],
    }
    args = RLOOConfig(
        **arguments, num_generations=task.group, max_completion_length=task.new_tokens, beta=task.kl,
        temperature=1.0, shuffle_dataset=False, use_vllm=vllm, vllm_max_model_length=task.max_length + 1,
        generation_kwargs=full_length,
    )  # fmt: skip
    threads, set_threads, cores = torch.get_num_threads(), torch.set_num_threads, os.sched_getaffinity(0)
    trainer = RLOOTrainer(
        job["model"], reward_funcs=nearness, args=args, train_dataset=Dataset.from_list([{"prompt": t} for t in texts]),
        processing_class=tokenizer,
    )  # fmt: skip
    # vLLM may take threads and cores from the trainer's side of the process.
    torch.set_num_threads = set_threads
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)
    return trainer


def patch_vllm(folder: str) -> None:
    """Make TRL's colocated vLLM work on CPU, where TRL as released dies at its first weight sync.

    vLLM repacks linear weights for its CPU kernels, so they must be reloaded, not copied in place; a tied head holds
    a packed copy of its own; and compiled graphs would keep the old ones. The engine gets the same cache as ours.
    """
    from plugins.rollout_vllm import VllmRolloutConfig
    from plugins.rollout_vllm.engine import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from trl.generation import vllm_generation

    ours = VllmRolloutConfig()
    vllm_generation.LLM = functools.partial(
        vllm_generation.LLM, enforce_eager=True, kv_cache_memory_bytes=int(ours.kv_cache_gb * 2**30),
        block_size=ours.block_tokens, dtype="bfloat16",
    )  # fmt: skip
    tied = bool(json.loads((Path(folder) / "config.json").read_text()).get("tie_word_embeddings", False))

    def sync_weights(self: Any) -> None:
        def weights() -> Any:
            for name, parameter in self._iter_named_params():
                yield name, parameter
                if tied and name.endswith("embed_tokens.weight"):
                    yield "lm_head.weight", parameter

        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights()})
        self.llm.reset_prefix_cache()

    vllm_generation.VLLMGeneration.sync_weights = sync_weights


def _tokenizer(job: dict[str, Any]) -> Any:
    return AutoTokenizer.from_pretrained(job["model"])
