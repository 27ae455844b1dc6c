"""Rows to packed token rows: tokenise, mask, pack. preftune, TRL and LLaMA-Factory in fresh processes, in turn.

Run as a module it is a contender's process: a job as JSON on standard input, its answer as the last line of output.
Only the standard library at the top: LLaMA-Factory's process has an environment of its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MAX_TOKENS = 1024
"""Longest row, and tokens of a packed one."""
_ANSWER = "PREPARED "


def contenders(llamafactory: str | None) -> dict[str, dict[str, Any]]:
    """Name to job. llamafactory: the Python of an environment that holds LLaMA-Factory."""
    found: dict[str, dict[str, Any]] = {
        "preftune": {"side": "ours"},
        "preftune, tokens in the cache": {"side": "ours", "overrides": ["data.token_cache=always"]},
        "trl": {"side": "trl", "processes": None},
        "trl, 2 processes": {"side": "trl", "processes": 2},
    }
    if llamafactory:
        found["llamafactory"] = {"side": "llamafactory", "processes": 1, "python": llamafactory}
        found["llamafactory, 2 processes"] = {"side": "llamafactory", "processes": 2, "python": llamafactory}
    return found


def run_prepare(
    rows: list[dict[str, str]], model: str, rounds: int, folder: Path, llamafactory: str | None
) -> list[dict[str, Any]]:
    """Rows a second of each contender, the median of `rounds` turns; turns alternate."""
    folder.mkdir(parents=True)
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), encoding="utf-8")
    jobs = contenders(llamafactory)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    errors: dict[str, str] = {}
    for turn in range(rounds):
        for name, job in jobs.items():
            if name not in errors:
                answer = _ask({**job, "folder": str(folder), "model": model, "turn": turn}, folder)
                if "error" in answer:
                    errors[name] = answer["error"]
                else:
                    turns[name].append(answer)
    return [
        {
            "name": name,
            "error": errors.get(name, ""),
            "rows_per_s": median([turn["rows"] / turn["seconds"] for turn in turns[name]] or [0.0]),
            "turns": turns[name],
        }
        for name in jobs
    ]


def _ask(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
                   "PREFTUNE_CACHE": str(folder / f"cache{job['turn']}"), "HF_HOME": str(folder / "hf")}  # fmt: skip
    done = subprocess.run(
        [job.get("python", sys.executable), "-m", "benchmarks.prepare"], input=json.dumps(job), cwd=ROOT,
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if said:
        return json.loads(said[-1].removeprefix(_ANSWER))
    return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    ours = results[0]["rows_per_s"]
    lines = ["| contender | rows/s | range | tokens | packed rows | ours is … times as fast | peak GB |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for entry in results:
        if entry["error"]:
            lines.append(f"| {entry['name']} | failed: {entry['error']} | | | | | |")
            continue
        speeds = [turn["rows"] / turn["seconds"] for turn in entry["turns"]]
        last, peak = entry["turns"][-1], max(turn["peak_gb"] for turn in entry["turns"])
        lines.append(
            f"| {entry['name']} | {entry['rows_per_s']:.0f} | {min(speeds):.0f}–{max(speeds):.0f} | {last['tokens']:,} "
            f"| {last['packed']:,} | {ours / entry['rows_per_s']:.1f} | {peak:.2f} |"
        )
    return "\n".join(lines)


# ---- in a contender's process ---------------------------------------------------------------------------------------


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """The `sft` stage's own functions: demonstrations, then the packed rows of every step of an epoch."""
    from core.config.typed import typed_config
    from core.console import Console
    from core.planning.make import make_plan
    from core.quiet import hush, set_environment
    from core.training.opening import open_stage
    from core.training.order import step_items
    from plugins.sft.stage import weighted_rows

    set_environment()
    hush()
    batch = 64
    cfg, registry, config_json = typed_config([
        "stage=sft", "model=custom", f"model.source={job['model']}", f"model.max_length={MAX_TOKENS}", "data=none",
        f"data.path={job['folder']}/rows.json", "data.heldout_frac=0", "tracker=none", "reuse=false",
        f"stage.batch_size={batch}", f"stage.micro_batch_tokens={MAX_TOKENS}", f"runs_dir={job['folder']}/runs",
        *job.get("overrides", []),
    ])  # fmt: skip
    chain = make_plan(cfg, registry)
    chain.target.run_dir = Path(job["folder"]) / "run"
    chain.target.run_dir.mkdir(exist_ok=True)
    run = open_stage(chain, chain.target, registry, Console(quiet=True), config_json, "benchmark").run
    maker = run.examples  # loads the tokenizer
    began = time.perf_counter()
    examples = maker.demonstrations(run.plan.dataset.train)
    packed = 0
    for step in range(len(examples) // batch):
        packed += len(weighted_rows(step_items(examples, step, batch, 0), MAX_TOKENS))
    seconds = time.perf_counter() - began
    return {"rows": len(examples), "tokens": sum(example.tokens for example in examples), "packed": packed,
            "seconds": seconds}  # fmt: skip


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """SFTTrainer's own preparation of prompt and completion, packing included; its trainer holds a tiny model."""
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    rows = json.loads(Path(job["folder"], "rows.json").read_text(encoding="utf-8"))
    dataset = datasets.Dataset.from_list([
        {"prompt": [{"role": "user", "content": row["instruction"]}],
         "completion": [{"role": "assistant", "content": row["output"]}]}
        for row in rows
    ])  # fmt: skip
    taken: dict[str, Any] = {}

    class Timed(SFTTrainer):
        """Keeps the clock of the preparation."""

        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            made = super()._prepare_dataset(*args, **kwargs)
            taken["seconds"] = time.perf_counter() - began
            return made

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    args = SFTConfig(
        output_dir=f"{job['folder']}/trl", use_cpu=True, report_to="none", packing=True, max_length=MAX_TOKENS,
        dataset_num_proc=job["processes"], bf16=False,
    )  # fmt: skip
    trainer = Timed(LlamaForCausalLM(config), args=args, train_dataset=dataset, processing_class=tokenizer)
    made = trainer.train_dataset
    return {"rows": len(rows), "tokens": sum(map(len, made["input_ids"])), "packed": len(made), **taken}


def llamafactory(job: dict[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory's get_dataset for stage sft, packing without contamination; reading the file is inside."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from transformers import AutoTokenizer

    model_args, data_args, training_args, _, _ = get_train_args({
        "model_name_or_path": job["model"], "stage": "sft", "do_train": True, "finetuning_type": "full",
        "dataset": "rows", "dataset_dir": job["folder"], "template": "chatml", "cutoff_len": MAX_TOKENS,
        "neat_packing": True, "overwrite_cache": True, "preprocessing_num_workers": job["processes"],
        "output_dir": f"{job['folder']}/lf{job['turn']}{job['processes']}", "use_cpu": True, "report_to": "none",
    })  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    began = time.perf_counter()
    made = get_dataset(template, model_args, data_args, training_args, "sft", tokenizer)["train_dataset"]
    seconds = time.perf_counter() - began
    pad = tokenizer.pad_token_id
    rows = len(json.loads(Path(job["folder"], "rows.json").read_text(encoding="utf-8")))
    tokens = sum(token != pad for ids in made["input_ids"] for token in ids)
    return {"rows": rows, "tokens": tokens, "packed": len(made), "seconds": seconds}


if __name__ == "__main__":
    asked = json.loads(sys.stdin.read())
    answer = {"ours": ours, "trl": trl, "llamafactory": llamafactory}[asked["side"]](asked)
    answer["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write(f"\n{_ANSWER}{json.dumps(answer)}\n")
