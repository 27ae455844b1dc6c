"""The artifact of a stage: weights, tokenizer, generation config, card; sealed with hashes, lineage and a verification
in a fresh process. Only verified artifacts are read by later stages."""

from __future__ import annotations

import copy
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from core.data.records import Message
from core.errors import ArtifactError, ModelError
from core.files import atomic_folder, disk_guard
from core.models.adapters import is_prompt_learning, settle
from core.models.loading import OFFSET_KEY
from core.models.merging import checkpoint_weights
from core.models.roles import Models, ScoreModel, TokenModel
from core.models.start import Start
from core.models.sync import fixed_text
from core.planning.model_folder import RECORD, adapter_base, folder_fingerprint
from core.planning.plan import StagePlan
from core.proof import checksums, files_under, write_record

ARTIFACT_VERSION = 2
_PROBE_POSITIONS = 24
_VERIFY_TIMEOUT_S = 900
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "bitsandbytes", "preftune")


def trained_model(plan: StagePlan, models: Models) -> TokenModel | ScoreModel:
    """The model that the stage exists to make."""
    model = models.policy if plan.spec.makes == "policy" else models.reward_model
    if model is None:
        raise ModelError(f"the stage makes a {plan.spec.makes}, but has none", plan.stage)
    return model


def export_model(plan: StagePlan, models: Models, folder: Path, final: Path) -> None:
    """Write the trained model into `folder`: an adapter as an adapter (and merged, where asked), else all weights.

    final: where the folder will stand when it is whole.
    """
    model = trained_model(plan, models)
    module, start, codec, peft = model.module, models.start, models.codec, plan.cfg.peft
    record: dict[str, Any] = {"version": 1}
    if isinstance(model, ScoreModel):
        setattr(model.config, OFFSET_KEY, model.offset)
        model.config.pad_token_id = codec.pad
        record[OFFSET_KEY] = model.offset
    else:
        generation = model.base.generation_config
        generation.eos_token_id = list(codec.ends) if len(codec.ends) > 1 else codec.eos
        generation.pad_token_id = codec.pad
        generation.do_sample, generation.temperature, generation.top_p, generation.top_k = False, None, None, None
    if peft.method != "none":
        settle(module)
        base = start.plain.resolve()
        record |= {"quant": plan.cfg.quant.value, "base": os.path.relpath(base, final.resolve())}
        for config in module.peft_config.values():  # type: ignore[operator]
            config.base_model_name_or_path = str(base)
        module.save_pretrained(folder)  # type: ignore[operator]
        if isinstance(model, TokenModel):
            model.base.generation_config.save_pretrained(folder)
        if peft.merge and not is_prompt_learning(module):
            _save_merged(start, model, folder / "merged")
    else:
        module.save_pretrained(folder)  # type: ignore[operator]
    if len(record) > 1:
        (folder / RECORD).write_text(json.dumps(record))
    codec.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_card(plan, start), encoding="utf-8")


def _save_merged(start: Start, model: TokenModel | ScoreModel, folder: Path) -> None:
    """The adapter merged into plain weights, in a folder of transformers' format."""
    folder.mkdir(parents=True)
    base = model.base
    tensors = {name: tensor.to(start.dtype).cpu().contiguous() for name, tensor in checkpoint_weights(model.module)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    if isinstance(model, TokenModel):
        base.generation_config.save_pretrained(folder)
    start.codec.tokenizer.save_pretrained(folder)


def _card(plan: StagePlan, start: Start) -> str:
    parents = "".join(f"\n- {parent.stage}: `{parent.key}`" for parent in plan.parents.values()) or "\n- none"
    return f"""---
library_name: transformers
tags: [preftune, {plan.stage}]
---
# {plan.title}

Made by preftune {metadata.version("preftune")} from `{plan.cfg.model.source}`.

- key: `{plan.key}`
- method: {plan.spec.summary} {f"({plan.spec.paper})" if plan.spec.paper else ""}
- records: {plan.dataset.info.train.records}, fingerprint `{plan.dataset.info.fingerprint[:16]}`
- adapter: {plan.cfg.peft.title}; base weights: {plan.cfg.quant.value}
- computed in {str(start.dtype).removeprefix("torch.")}

Parents:{parents}

The resolved config, the metrics and the verification stand beside this folder in the run's own.
"""


def probe(
    start: Start, model: TokenModel | ScoreModel, prompt: Sequence[int] | None, new_tokens: int
) -> dict[str, torch.Tensor]:
    """What the model in memory says of a fixed text: logits [P, V] of its last tokens or scores [T], and the greedy
    continuation of a prompt by at most `new_tokens`.

    prompt: token ids; None takes a fixed one.
    """
    codec = start.codec
    ids = torch.tensor([fixed_text(codec)], device=start.device)
    tensors = {"ids": ids.cpu()}
    with torch.no_grad():
        logits = model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        if isinstance(model, ScoreModel):
            tensors["scores"] = logits.float().flatten().cpu()
            return tensors
        tensors["logits"] = logits[0, -_PROBE_POSITIONS:].float().cpu().contiguous()
        asked = prompt if prompt is not None else codec.prompts([[Message("user", "Say hello.")]])[0]
        prompt_ids = torch.tensor([list(asked)], device=start.device)
        out = model.module.generate(  # type: ignore[operator]
            input_ids=prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=False,
            max_new_tokens=new_tokens, eos_token_id=list(codec.ends), pad_token_id=codec.pad,
        )  # fmt: skip
        tensors["prompt"] = prompt_ids.cpu()
        tensors["generated"] = out[:, prompt_ids.shape[1] :].cpu().contiguous()
    return tensors


def seal(
    plan: StagePlan, models: Models, run_dir: Path, export: Callable[[Path], None], prompt: Sequence[int] | None = None
) -> dict[str, Any]:
    """Export, hash, verify in a fresh process, and write artifact.json. Returns its contents.

    export: writes the artifact into the folder that it is given. prompt: token ids that a policy continues as a probe.
    An artifact that fails its verification keeps its record, with `ok` false, and is never reused.
    """
    folder = run_dir / "artifact"
    model, start = trained_model(plan, models), models.start
    trainable = sum(parameter.numel() for _, parameter in model.trainable())
    total = sum(parameter.numel() for parameter in model.module.parameters())
    with atomic_folder(folder) as part:
        export(part)
    # Hashed before they are verified: what changes afterwards is noticed when the artifact is to be reused.
    hashes = checksums(folder)
    sizes = {name: path.stat().st_size for name, path in files_under(folder).items()}
    expected = run_dir / ".probe.safetensors"
    tensors = probe(start, model, prompt, plan.cfg.eval.max_new_tokens)
    try:
        with disk_guard(expected):
            save_file(tensors, expected)
        verification = verify_in_fresh_process(_verification_job(plan, model, start, folder, expected))
    finally:
        expected.unlink(missing_ok=True)
    artifact = {
        "version": ARTIFACT_VERSION,
        "key": plan.key,
        "stage": plan.stage,
        "algorithm": plan.algorithm,
        "makes": plan.spec.makes,
        "owner": plan.owner,
        "parents": plan.parents_json(),
        "files": hashes,
        "sizes": sizes,
        "base": folder_fingerprint(base) if (base := adapter_base(folder)) is not None else None,
        "versions": _versions(),
        "trained": {
            "trainable": trainable,
            "total": total,
            "peft": plan.cfg.peft.title,
            "quant": plan.cfg.quant.value,
            "dtype": str(start.dtype).removeprefix("torch."),
        },
        "verification": verification,
    }
    write_record(run_dir / "artifact.json", artifact)
    return artifact


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _python_path() -> str:
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


def _verification_job(
    plan: StagePlan, model: TokenModel | ScoreModel, start: Start, folder: Path, expected: Path
) -> dict[str, Any]:
    """What core.artifacts.verify needs to know."""
    return {
        "folder": str(folder.resolve()),
        "expected": str(expected.resolve()),
        "makes": plan.spec.makes,
        "dtype": str(start.dtype).removeprefix("torch."),
        "ends": list(start.codec.ends),
        "pad": start.codec.pad,
        "offset_key": OFFSET_KEY,
        "threads": torch.get_num_threads(),
        "quant": plan.cfg.quant.value,
        "attention": model.config._attn_implementation,
        "remote_code": bool(plan.cfg.model.trust_remote_code),
        "device": str(start.device),
    }


def verify_in_fresh_process(job: dict[str, Any]) -> dict[str, Any]:
    """Reload the artifact in a new Python process and compare with the probe: {ok, checks}.

    Raises ArtifactError when the process does not come to an end.
    """
    try:
        done = subprocess.run(
            # -P and the path as it is here: a folder named `core` where the run was started must not answer.
            [sys.executable, "-P", "-m", "core.artifacts.verify"], input=json.dumps(job),
            capture_output=True, text=True, timeout=_VERIFY_TIMEOUT_S, check=False,
            env={**os.environ, "PYTHONPATH": _python_path()},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(f"the verification did not end within {_VERIFY_TIMEOUT_S} s", job["folder"]) from error
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-1:] or [f"the process ended with code {done.returncode}"]
        return {"ok": False, "checks": [{"name": "reload", "ok": False, "detail": tail[0]}]}
    checks = json.loads(done.stdout.splitlines()[-1])
    return {"ok": all(check["ok"] for check in checks), "checks": checks}
