"""From a folder to a transformers module: weights, number format, quantization, an adapter merged into its base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import ModelError
from core.models.adapters import keep_differentiable, merged_weights, quantization_config
from core.models.heads import score_class
from core.models.kinds import check_causal, read_config
from core.planning.sources import resolve_source
from core.settings.schema import ModelConfig, Quant, RunConfig

OFFSET_KEY = "preftune_reward_offset"
"""Key of the transformers config under which a reward model's offset is saved."""
RECORD = "preftune.json"
"""File beside an artifact's weights: what transformers and peft have no place for."""


def load_module(folder: Path, cfg: RunConfig, dtype: torch.dtype, task: str, quant: Quant = Quant.none) -> nn.Module:
    """A plain transformers model from a folder in transformers' format; an adapter in it is merged into its base.

    task: "CAUSAL_LM", or "SEQ_CLS" for one score a token. A head that the folder lacks is drawn with the standard
    deviation 1/sqrt(d + 1) and without bias (arXiv:2403.17031), from the run's seed.
    Raises ModelError when the folder cannot be loaded.
    """
    if (folder / "adapter_config.json").is_file():
        # A quantized start is made from the merged weights, see Start.plain.
        return _load_merged(folder, cfg, dtype, task)
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = read_config(folder)
    if config is not None:
        check_causal(config, str(folder / "config.json"))
    kwargs: dict[str, Any] = {"dtype": dtype, "trust_remote_code": bool(cfg.model.trust_remote_code)}
    quantization = quantization_config(quant, dtype)
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    try:
        if task == "CAUSAL_LM":
            return keep_differentiable(AutoModelForCausalLM.from_pretrained(folder, **kwargs))
        kind = AutoModelForSequenceClassification if config is None else score_class(config)
        module = kind.from_pretrained(folder, num_labels=1, **kwargs)
    except Exception as error:  # transformers and safetensors raise whatever they like for a damaged file
        raise ModelError(
            f"the model could not be loaded: {type(error).__name__}: {error}".splitlines()[0],
            str(folder),
            "check that the folder holds config.json and whole safetensors weights",
        ) from error
    if not has_head(folder):
        generator = torch.Generator().manual_seed(cfg.runtime.seed)
        head = module.score.weight
        with torch.no_grad():
            head.copy_(torch.randn(head.shape, generator=generator) / math.sqrt(head.shape[1] + 1))
    module.config.pad_token_id = module.config.pad_token_id or 0
    return keep_differentiable(module)


def has_head(folder: Path) -> bool:
    """Whether the weights hold a scoring head; without it transformers would draw one unseen."""
    from safetensors import SafetensorError, safe_open

    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                if any("score" in name.split(".") for name in file.keys()):  # noqa: SIM118 (not a dict)
                    return True
        except (OSError, SafetensorError) as error:
            raise ModelError(f"the weights cannot be read: {error}", str(path), "copy the file again") from error
    return False


def read_record(folder: Path) -> dict[str, Any]:
    """The artifact's record, or an empty one."""
    path = folder / RECORD
    return json.loads(path.read_text()) if path.is_file() else {}


def adapter_base(folder: Path) -> Path:
    """Folder of the plain model that the adapter in `folder` belongs to.

    It is looked for where the adapter was made, then beside the adapter as it was then (runs that were moved
    together), then as a hub id. Raises ModelError when it is nowhere.
    """
    adapter = json.loads((folder / "adapter_config.json").read_text())
    recorded = str(adapter.get("base_model_name_or_path") or "")
    beside = read_record(folder).get("base")
    for path in (Path(recorded), (folder / beside).resolve() if beside else None):
        if recorded and path is not None and (path / "config.json").is_file():
            return path
    if recorded.count("/") == 1 and not recorded.startswith((".", "/", "~")):
        return resolve_source(ModelConfig(source=recorded, revision=adapter.get("revision")))
    raise ModelError(
        f"the model that the adapter was trained on is not at '{recorded}' any more",
        str(folder / "adapter_config.json"),
        "put it back, write its new place into base_model_name_or_path, or train with peft.merge=true, whose artifact "
        "holds a whole model too",
    )


def _load_merged(folder: Path, cfg: RunConfig, dtype: torch.dtype, task: str) -> nn.Module:
    """The plain model of an adapter's folder. What was trained on quantized weights is merged into what they stand
    for, not into the weights before quantization."""
    from peft import PeftModel

    record = read_record(folder)
    base_folder = adapter_base(folder)
    quant = Quant(record.get("quant", Quant.none.value))
    tuned = PeftModel.from_pretrained(
        load_module(base_folder, cfg, dtype, task, quant), folder, autocast_adapter_dtype=False
    )
    weights = dict(merged_weights(tuned))
    plain = tuned.unload() if quant is Quant.none else load_module(base_folder, cfg, dtype, task)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(weights[name])
    if OFFSET_KEY in record:
        setattr(plain.config, OFFSET_KEY, record[OFFSET_KEY])
    return plain
