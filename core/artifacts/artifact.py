"""The artifact of a stage: weights, tokenizer, generation config, card; sealed with hashes, lineage and a verification
in a fresh process. Only verified artifacts are read by later stages."""

from __future__ import annotations

import copy
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from core.data.records import Message
from core.errors import ArtifactError, ModelError
from core.files import atomic_folder, disk_guard, sha256_file, write_json
from core.models.adapters import merged_weights, settle
from core.models.loading import OFFSET_KEY, RECORD
from core.models.roles import Models, ScoreModel, TokenModel, is_prompt_learning
from core.models.sync import fixed_text

if TYPE_CHECKING:
    from core.training.run import StageRun

ARTIFACT_VERSION = 1
_PROBE_POSITIONS = 24
_VERIFY_TIMEOUT_S = 900
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "bitsandbytes", "preftune")


def trained_model(run: StageRun, models: Models) -> TokenModel | ScoreModel:
    """The model that the stage exists to make."""
    model = models.policy if run.plan.spec.makes == "policy" else models.reward_model
    if model is None:
        raise ModelError(f"the stage makes a {run.plan.spec.makes}, but has none", run.stage_name)
    return model


def export_models(run: StageRun, models: Models, folder: Path) -> None:
    """Write the trained model into `folder`: an adapter as an adapter (and merged, where asked), else all weights."""
    model = trained_model(run, models)
    module = model.module
    codec = run.codec
    record: dict[str, Any] = {"version": 1}
    if isinstance(model, ScoreModel):
        setattr(model.config, OFFSET_KEY, model.offset)
        model.config.pad_token_id = codec.pad
        record[OFFSET_KEY] = model.offset
    else:
        generation = model.base.generation_config
        generation.eos_token_id = codec.eos
        generation.pad_token_id = codec.pad
        generation.do_sample, generation.temperature, generation.top_p, generation.top_k = False, None, None, None
    if run.cfg.peft.method != "none":
        settle(module)
        base = run.engine_folder.resolve()
        record |= {"quant": run.cfg.quant.value, "base": os.path.relpath(base, (run.dir / "artifact").resolve())}
        for config in module.peft_config.values():  # type: ignore[operator]
            config.base_model_name_or_path = str(base)
        module.save_pretrained(folder)  # type: ignore[operator]
        if isinstance(model, TokenModel):
            model.base.generation_config.save_pretrained(folder)
        if run.cfg.peft.merge and not is_prompt_learning(module):
            _save_merged(run, model, folder / "merged")
    else:
        module.save_pretrained(folder)  # type: ignore[operator]
    if len(record) > 1:
        (folder / RECORD).write_text(json.dumps(record))
    codec.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_card(run), encoding="utf-8")


def _save_merged(run: StageRun, model: TokenModel | ScoreModel, folder: Path) -> None:
    """The adapter merged into plain weights, in a folder of transformers' format."""
    folder.mkdir(parents=True)
    base = model.base
    tensors = {name: tensor.to(run.dtype).cpu().contiguous() for name, tensor in merged_weights(model.module)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    if isinstance(model, TokenModel):
        base.generation_config.save_pretrained(folder)
    run.codec.tokenizer.save_pretrained(folder)


def save_plain(run: StageRun, folder: Path) -> None:
    """The stage's starting weights as a plain model without adapter, for engines that can load nothing else."""
    from core.models.loading import load_module

    module = load_module(run.start_folder, run.cfg, run.dtype, "CAUSAL_LM")
    with atomic_folder(folder) as part:
        module.save_pretrained(part)  # type: ignore[operator]
        run.codec.tokenizer.save_pretrained(part)


def _card(run: StageRun) -> str:
    plan = run.plan
    parents = "".join(f"\n- {parent['stage']}: `{parent['key']}`" for parent in run.parents) or "\n- none"
    return f"""---
library_name: transformers
tags: [preftune, {plan.stage}]
---
# {plan.title}

Made by preftune {metadata.version("preftune")} from `{run.cfg.model.source}`.

- key: `{plan.key}`
- method: {plan.spec.summary} {f"({plan.spec.paper})" if plan.spec.paper else ""}
- records: {plan.dataset.info.get("train", {}).get("records", 0)}, fingerprint `{plan.dataset.info["fingerprint"][:16]}`
- adapter: {run.cfg.peft.title}; base weights: {run.cfg.quant.value}
- computed in {str(run.dtype).removeprefix("torch.")}

Parents:{parents}

The resolved config, the metrics and the verification stand beside this folder in the run's own.
"""


def probe(run: StageRun, model: TokenModel | ScoreModel) -> dict[str, torch.Tensor]:
    """What the model in memory says of a fixed text: logits [P, V] of its last tokens or scores [T], and the greedy
    continuation of a fixed prompt."""
    ids = torch.tensor([fixed_text(run)], device=run.device)
    tensors = {"ids": ids.cpu()}
    with torch.no_grad():
        logits = model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        if isinstance(model, ScoreModel):
            tensors["scores"] = logits.float().flatten().cpu()
            return tensors
        tensors["logits"] = logits[0, -_PROBE_POSITIONS:].float().cpu().contiguous()
        prompt = run.codec.prompts([[Message("user", "Say hello.")]])[0]
        if run.eval_records():
            prompt = run.codec.prompts([run.eval_records()[0].prompt])[0]
        prompt_ids = torch.tensor([prompt], device=run.device)
        out = model.module.generate(  # type: ignore[operator]
            input_ids=prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=False,
            max_new_tokens=run.cfg.eval.max_new_tokens,
            eos_token_id=run.codec.eos, pad_token_id=run.codec.pad,
        )  # fmt: skip
        tensors["prompt"] = prompt_ids.cpu()
        tensors["generated"] = out[:, prompt_ids.shape[1] :].cpu().contiguous()
    return tensors


def seal(run: StageRun) -> dict[str, Any]:
    """Export, hash, verify in a fresh process, and write artifact.json. Returns its contents.

    An artifact that fails its verification keeps its record, with `ok` false, and is never reused.
    """
    assert run.models is not None
    folder = run.dir / "artifact"
    model = trained_model(run, run.models)
    trainable = sum(parameter.numel() for _, parameter in model.trainable())
    total = sum(parameter.numel() for parameter in model.module.parameters())
    with atomic_folder(folder) as part:
        run.hook.export(run=run, models=run.models, folder=part)
    # Hashed before they are verified: what changes afterwards is noticed when the artifact is to be reused.
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hashes = {name: sha256_file(path) for name, path in files.items()}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    expected = run.dir / ".probe.safetensors"
    tensors = probe(run, model)
    try:
        with disk_guard(expected):
            save_file(tensors, expected)
        verification = verify_in_fresh_process(_verification_job(run, folder, expected))
    finally:
        expected.unlink(missing_ok=True)
    artifact = {
        "version": ARTIFACT_VERSION,
        "key": run.key,
        "stage": run.stage_name,
        "algorithm": run.plan.algorithm,
        "makes": run.plan.spec.makes,
        "owner": run.plan.owner,
        "parents": run.parents,
        "files": hashes,
        "sizes": sizes,
        "versions": _versions(),
        "trained": {
            "trainable": trainable,
            "total": total,
            "peft": run.cfg.peft.title,
            "quant": run.cfg.quant.value,
            "dtype": str(run.dtype).removeprefix("torch."),
        },
        "verification": verification,
    }
    write_json(run.dir / "artifact.json", artifact)
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


def _verification_job(run: StageRun, folder: Path, expected: Path) -> dict[str, Any]:
    """What core.artifacts.verify needs to know."""
    return {
        "folder": str(folder.resolve()),
        "expected": str(expected.resolve()),
        "makes": run.plan.spec.makes,
        "dtype": str(run.dtype).removeprefix("torch."),
        "eos": run.codec.eos,
        "pad": run.codec.pad,
        "offset_key": OFFSET_KEY,
        "threads": torch.get_num_threads(),
        "quant": run.cfg.quant.value,
        "remote_code": bool(run.cfg.model.trust_remote_code),
        "device": str(run.device),
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
