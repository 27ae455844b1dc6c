"""Verification of an artifact in a process that has never seen the run.

`python -m core.artifacts.verify` takes a job on stdin, reads the artifact by transformers and peft alone, as a stranger
would, and prints a JSON list of checks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from core.planning.model_folder import ADAPTER_CONFIG

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest accepted absolute difference in a logit or score; the same code on the same weights differs by nothing."""
MERGED_SHARE = {"none": 0.02, "nf4": 0.02, "int8": 0.1}
"""Largest accepted difference of merged weights, by base weights, as a share of the largest logit or score: merging
rounds to the number format, and int8 layers round their inputs, which merged ones do not."""


def _read(job: dict[str, Any], folder: str | Path, dtype: Any, **extra: Any) -> tuple[Any, list[str]]:
    """The model in a folder, in the attention that it had in memory, and the names of weights that no file holds."""
    from transformers import AutoModelForCausalLM

    from core.models.architecture import read_config
    from core.models.heads import score_class

    config = read_config(Path(folder), job["remote_code"])
    if job["makes"] == "policy":
        kind: Any = AutoModelForCausalLM
    else:
        config.num_labels = 1
        kind = score_class(config)
    model, info = kind.from_pretrained(
        folder, config=config, dtype=dtype, trust_remote_code=job["remote_code"], use_safetensors=True,
        attn_implementation=job["attention"], output_loading_info=True, **extra,
    )  # fmt: skip
    return model, sorted(info["missing_keys"])


def _load(job: dict[str, Any], dtype: Any) -> tuple[Any, list[str]]:
    """The artifact, and the names of the weights that no file of it holds."""
    from core.models.adapters import keep_differentiable, quantization_config
    from core.settings.schema import Quant

    folder = Path(job["folder"])
    adapter = folder / ADAPTER_CONFIG
    extra: dict[str, Any] = {}
    if (quantization := quantization_config(Quant(job["quant"]), dtype)) is not None:
        extra["quantization_config"] = quantization
    if not adapter.is_file():
        return _read(job, folder, dtype, **extra)
    from peft import PeftModel

    base, _ = _read(job, json.loads(adapter.read_text())["base_model_name_or_path"], dtype, **extra)
    # The same road through 4-bit layers as in training; the CPU's other one rounds to bf16.
    return PeftModel.from_pretrained(keep_differentiable(base), folder, autocast_adapter_dtype=False), []


def _nothing_missing(name: str, missing: list[str]) -> dict[str, Any]:
    return {"name": name, "ok": not missing, "detail": ", ".join(missing[:5]) or "all"}


def _compare(name: str, ours: Any, theirs: Any, tolerance: float) -> dict[str, Any]:
    difference = (ours - theirs).abs().max().item()
    return {
        "name": name,
        "ok": difference <= tolerance,
        "detail": f"largest difference {difference:.3g} (tolerance {tolerance:g})",
    }


def main() -> None:
    """Read the job from stdin, print the checks."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(json.dumps(check_artifact(json.loads(sys.stdin.read()))))  # noqa: T201 (the answer to the caller)


def check_artifact(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Load the artifact, compare it with what the model in memory said; one {name, ok, detail} a check."""
    from core.quiet import hush

    hush()
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    tolerance = TOLERANCE[job["dtype"]]
    expected = load_file(job["expected"], device=job["device"])
    model, missing = _load(job, dtype)
    model = model.to(job["device"]).eval()
    # transformers draws a missing head at random, with a warning at most.
    checks = [_nothing_missing("every weight is in the files", missing)]
    with torch.no_grad():
        ids = expected["ids"]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        if job["makes"] != "policy":
            checks.append(_compare("scores", logits.flatten(), expected["scores"], tolerance))
        else:
            rows = expected["logits"].shape[0]
            checks.append(_compare("logits", logits[0, -rows:], expected["logits"], tolerance))
            checks += _check_stopping(model, expected, job["ends"], job["pad"])
        merged = Path(job["folder"]) / "merged"
        if merged.is_dir():
            plain, lost = _read(job, merged, dtype)
            plain = plain.to(job["device"]).eval()
            again = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
            bound = max(tolerance, MERGED_SHARE[job["quant"]] * logits.abs().max().item())
            if job["dtype"] == "float32" and job["quant"] != "int8":
                bound = 10 * tolerance
            checks.append(_compare("merged weights", again, logits, bound))
            checks.append(_nothing_missing("every merged weight is in the files", lost))
    return checks


def _check_stopping(model: Any, expected: dict[str, Any], ends: list[int], pad: int) -> list[dict[str, Any]]:
    """The saved generation config names every token that ends a completion, the end-of-turn token first, and fills with
    the padding token; generation stops where it stopped in memory."""
    import torch
    from transformers import GenerationConfig

    config = getattr(model, "generation_config", None) or GenerationConfig()
    saved = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    prompt, before = expected["prompt"], expected["generated"]
    out = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=before.shape[1] + 8
    )[:, prompt.shape[1] :]
    stopped_before = int(before[0, -1]) in ends
    stopped_now = int(out[0, -1]) in ends and out.shape[1] == before.shape[1]
    return [
        {
            "name": "generation config ends at the end-of-turn token",
            "ok": saved == ends,
            "detail": f"eos_token_id={saved}",
        },
        {
            "name": "generation config fills with the padding token",
            "ok": config.pad_token_id == pad,
            "detail": f"pad_token_id={config.pad_token_id}",
        },
        {
            "name": "generation stops",
            "ok": stopped_now or not stopped_before,
            "detail": f"{out.shape[1]} tokens, {before.shape[1]} in memory"
            + ("" if stopped_before else "; the model does not end this answer by itself, in memory neither"),
        },
    ]


if __name__ == "__main__":
    main()
