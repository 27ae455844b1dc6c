"""From a folder to a transformers module: weights, number format, quantization, an adapter merged into its base."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import ModelError, PreftuneError, describe
from core.files import read_object
from core.models.adapters import keep_differentiable, quantization_config
from core.models.architecture import check_layers, read_config
from core.models.checkpoint import (
    plain_names,
    stored_tensors,
    weight_files,
    without,
    wrappers,
)
from core.models.fit import check_fit, check_ties, saved_names
from core.models.heads import score_class
from core.models.merging import merged_weights
from core.models.saved_adapter import check_mergeable, load_adapter
from core.planning import model_folder
from core.planning.model_folder import ADAPTER_CONFIG, RECORD
from core.planning.sources import resolve_source
from core.settings.schema import ModelConfig, Quant, RunConfig

OFFSET_KEY = "preftune_reward_offset"
"""Key of the transformers config under which a reward model's offset is saved."""
GENERATION = "generation_config.json"


def load_module(folder: Path, cfg: RunConfig, dtype: torch.dtype, task: str, quant: Quant = Quant.none) -> nn.Module:
    """A plain transformers model from a folder in transformers' format; an adapter in it is merged into its base.

    task: "CAUSAL_LM", or "SEQ_CLS" for one score a token. A head that the folder lacks is drawn with the standard
    deviation 1/sqrt(d + 1) and without bias (arXiv:2403.17031), from the run's seed.
    Raises ModelError when the folder cannot be loaded, is of another kind, or its tensors are not those of the model.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        # A quantized start is made from the merged weights, see Start.plain.
        return _load_merged(folder, cfg, dtype, task)
    with named(folder):
        return _load_plain(folder, cfg, dtype, task, quant)


def check_start(folder: Path, cfg: ModelConfig) -> None:
    """What a folder's small files tell of whether a stage can start from it; no weights are read.

    Raises ModelError for another kind of model, quantized weights, an adapter that cannot be merged, damaged files.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        check_mergeable(folder)
    else:
        read_config(folder, bool(cfg.trust_remote_code))


@contextmanager
def named(folder: Path) -> Iterator[None]:
    """Whatever fails in the block is told as a ModelError that names the folder."""
    try:
        yield
    except PreftuneError:
        raise
    except Exception as error:  # transformers, peft and safetensors raise whatever they like for a damaged file
        raise ModelError(
            f"the model could not be loaded: {describe(error)}",
            str(folder),
            "check that the folder holds config.json and whole safetensors weights",
        ) from error


def _load_plain(folder: Path, cfg: RunConfig, dtype: torch.dtype, task: str, quant: Quant) -> nn.Module:
    from transformers import GenerationConfig

    remote_code = bool(cfg.model.trust_remote_code)
    config = read_config(folder, remote_code)
    if (folder / GENERATION).is_file():
        read_object(folder / GENERATION)
    files = weight_files(folder)
    stored = stored_tensors(files)
    patterns = wrappers(stored)
    plain = plain_names(stored, patterns, folder)
    check_layers(config, plain, folder)
    new_head = task != "CAUSAL_LM" and not any(_is_head(name) for name in plain)
    config.num_labels = 1
    causal = _skeleton(config, cfg, "CAUSAL_LM")
    skeleton = causal if new_head else _skeleton(config, cfg, task)
    # A scoring model may have kept the language model's own head.
    check_fit(skeleton, plain, folder, spare=set(causal.state_dict()) - set(skeleton.state_dict()))

    kwargs: dict[str, Any] = {"config": config, "dtype": dtype, "trust_remote_code": remote_code}
    if (quantization := quantization_config(quant, dtype)) is not None:
        kwargs["quantization_config"] = quantization
    if patterns:
        # Under other names than those in the files: transformers takes tensors for a class, and no folder beside them.
        bare = _skeleton(config, cfg, task)
        kwargs |= {"config": bare.config, "state_dict": _slices(files, patterns)}
        module, info = type(bare).from_pretrained(None, output_loading_info=True, **kwargs)
        if task == "CAUSAL_LM" and (folder / GENERATION).is_file():
            module.generation_config = GenerationConfig.from_pretrained(folder)
    else:
        kind = _class(config, task)
        module, info = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **kwargs)
    missing = {name for name in info["missing_keys"] if not (new_head and _is_head(name))}
    if missing or info["mismatched_keys"]:
        raise ModelError(f"the weights of the model are missing: {', '.join(sorted(missing)[:4])}", str(folder))
    check_ties(module, causal, folder)
    if task == "CAUSAL_LM":
        return keep_differentiable(module)
    if new_head:
        generator = torch.Generator().manual_seed(cfg.runtime.seed)
        head = module.score.weight
        with torch.no_grad():
            head.copy_(torch.randn(head.shape, generator=generator) / math.sqrt(head.shape[1] + 1))
    module.config.pad_token_id = module.config.pad_token_id or 0
    return keep_differentiable(module)


def _class(config: Any, task: str) -> Any:
    """The class that makes models of a config for a task."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM if task == "CAUSAL_LM" else score_class(config)


def _skeleton(config: Any, cfg: RunConfig, task: str) -> Any:
    """The model without weights."""
    remote_code = bool(cfg.model.trust_remote_code)
    with torch.device("meta"):
        return _class(config, task).from_config(copy.deepcopy(config), trust_remote_code=remote_code)


def _is_head(name: str) -> bool:
    """Whether a tensor belongs to a scoring head."""
    return "score" in name.split(".")


def has_head(folder: Path) -> bool:
    """Whether the weights hold a scoring head; without it transformers would draw one unseen."""
    return any(_is_head(name) for name in stored_tensors(weight_files(folder)))


def has_plain_names(folder: Path, cfg: RunConfig) -> bool:
    """Whether the folder is one that engines and plain loaders take as it is: no adapter, and every tensor under the
    name that save_pretrained would give it."""
    if (folder / ADAPTER_CONFIG).is_file():
        return False
    with named(folder):
        config = read_config(folder, bool(cfg.model.trust_remote_code))
        stored = stored_tensors(weight_files(folder))
        check_layers(config, stored, folder)
        return saved_names(_skeleton(config, cfg, "CAUSAL_LM")) <= set(stored)


def _slices(files: Sequence[Path], patterns: Sequence[str]) -> dict[str, Any]:
    """The tensors of the files under their names in the plain model, not read yet."""
    from safetensors import safe_open

    opened = [safe_open(file, "pt") for file in files]
    return {without(name, patterns): file.get_slice(name) for file in opened for name in file.keys()}  # noqa: SIM118


def read_record(folder: Path) -> dict[str, Any]:
    """The artifact's record, or an empty one."""
    path = folder / RECORD
    return read_object(path) if path.is_file() else {}


def adapter_base(folder: Path) -> Path:
    """Folder of the plain model that the adapter in `folder` belongs to.

    It is looked for where the adapter was made, then beside the adapter as it was then (runs that were moved
    together), then as a hub id. Raises ModelError when it is nowhere, or is the adapter itself.
    """
    path = folder / ADAPTER_CONFIG
    adapter = read_object(path)
    recorded, revision = str(adapter.get("base_model_name_or_path") or ""), adapter.get("revision")
    read_record(folder)  # a damaged record is told, not taken for none
    if (place := model_folder.adapter_base(folder)) is not None:
        _check_no_circle(place, folder)
        return place
    if recorded.count("/") == 1 and not recorded.startswith((".", "/", "~")):
        return resolve_source(ModelConfig(source=recorded, revision=str(revision) if revision else None))
    raise ModelError(
        f"the model that the adapter was trained on is not at '{recorded}' any more",
        str(path),
        "put it back, write its new place into base_model_name_or_path, or train with peft.merge=true, whose artifact "
        "holds a whole model too",
    )


def _check_no_circle(base: Path, folder: Path) -> None:
    """Raise ModelError where an adapter's base, or the base of that, is the adapter's own folder."""
    seen, place = {folder.resolve()}, base
    while place.resolve() not in seen:
        seen.add(place.resolve())
        if not (place / ADAPTER_CONFIG).is_file():
            return
        place = Path(str(read_object(place / ADAPTER_CONFIG).get("base_model_name_or_path") or "-"))
    raise ModelError(
        f"the adapter names itself as the model that it was trained on, by '{base}'",
        f"{folder / ADAPTER_CONFIG}: base_model_name_or_path", "write the place of the plain model there",
    )  # fmt: skip


def _load_merged(folder: Path, cfg: RunConfig, dtype: torch.dtype, task: str) -> nn.Module:
    """The plain model of an adapter's folder. What was trained on quantized weights is merged into what they stand
    for, not into the weights before quantization."""
    check_mergeable(folder)  # refused before its base is read
    record = read_record(folder)
    base_folder = adapter_base(folder)
    quant = _recorded_quant(record, folder)
    base = load_module(base_folder, cfg, dtype, task, quant)
    with named(folder):
        tuned = load_adapter(base, folder)
        weights = dict(merged_weights(tuned))
        plain = tuned.unload() if quant is Quant.none else load_module(base_folder, cfg, dtype, task)
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                parameter.copy_(weights[name])
    if OFFSET_KEY in record:
        setattr(plain.config, OFFSET_KEY, record[OFFSET_KEY])
    return plain


def _recorded_quant(record: dict[str, Any], folder: Path) -> Quant:
    """The number format of the base weights that an adapter was trained on."""
    value = record.get("quant", Quant.none.value)
    if value not in {quant.value for quant in Quant}:
        raise ModelError(f"the record names an unknown number format '{value}'", f"{folder / RECORD}: quant")
    return Quant(value)
