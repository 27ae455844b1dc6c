"""An adapter as it was saved: its config and its tensors, compared with what the base model and the method need."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from core.config.combinations import FAILING, UNMERGEABLE
from core.errors import ModelError, describe
from core.files import read_object
from core.models.checkpoint import (
    plain_names,
    stored_tensors,
    weight_files,
    without,
    wrappers,
)
from core.planning.model_folder import ADAPTER_CONFIG
from core.suggest import nearest, question

_ROOT = "base_model."
"""What the names of an adapter's tensors begin with, except for prompt methods."""
_SHOWN = 4
_UNREAD = ("auto_mapping", "runtime_config")
"""Fields that say nothing about the adapter."""


def adapter_config(folder: Path) -> Any:
    """peft's config of the adapter in `folder`. Raises ModelError for one that cannot be read or used here."""
    path = folder / ADAPTER_CONFIG
    raw = read_object(path)
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = raw.get("peft_type")
    if not isinstance(kind, str) or kind not in known:
        near = nearest(str(kind).upper(), sorted(known))
        raise ModelError(
            f"peft has no adapter of the type '{kind}'{question([near] if near else [])}",
            f"{path}: peft_type", "name the type that the adapter was trained with",
        )  # fmt: skip
    if (reason := FAILING.get(kind.lower())) is not None:
        raise ModelError(f"an adapter of the type '{kind}' cannot be read: {reason}", f"{path}: peft_type")
    names = {item.name for item in fields(known[kind])}
    for name, value in raw.items():
        if name not in names and name not in _UNREAD and value:
            near = nearest(name, sorted(names))
            raise ModelError(
                f"the type '{kind}' has no field '{name}'{question([near] if near else [])}",
                f"{path}: {name}", "correct it, or install the version of peft that the adapter was saved with",
            )  # fmt: skip
    if raw.get("megatron_config"):
        raise ModelError("adapters on Megatron layers cannot be read", f"{path}: megatron_config")
    given = {name: value for name, value in raw.items() if name in names}
    try:
        config = known[kind](**given)
    except Exception as error:  # whatever a config class says of values of another type
        raise ModelError(
            f"the adapter's config cannot be used: {describe(error)}", str(path), "copy it again"
        ) from error
    config.inference_mode = True
    return config


def check_mergeable(folder: Path) -> None:
    """Raise ModelError for an adapter that no plain weights can hold, from which nothing can start."""
    kind = str(adapter_config(folder).peft_type.value).lower()
    if (reason := UNMERGEABLE.get(kind)) is not None:
        base = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        raise ModelError(
            f"no stage can start from a '{kind}' adapter: {reason}", str(folder),
            f"start from the model under it, model.source={base}, or from a run of a method that merges, as peft=lora",
        )  # fmt: skip


def load_adapter(base: nn.Module, folder: Path) -> Any:
    """The base model with the saved adapter on it, in eval mode.

    Raises ModelError naming each tensor that is missing, unknown or of another shape.
    """
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    config = adapter_config(folder)
    files = weight_files(folder)
    stored = stored_tensors(files)
    patterns = wrappers([_inner(name) for name in stored])
    given = plain_names({_inner(name): tensor for name, tensor in stored.items()}, patterns, folder)
    try:
        kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
        tuned = kind(base, config, autocast_adapter_dtype=False)
        needed = {_inner(name): tensor for name, tensor in get_peft_model_state_dict(
            tuned, save_embedding_layers=False).items()}  # fmt: skip
    except Exception as error:  # the values of the config do not fit the model
        raise ModelError(
            f"the adapter cannot be put on its base model: {describe(error)}",
            str(folder / ADAPTER_CONFIG),
            "check its values, and that base_model_name_or_path is the model that it was trained on",
        ) from error
    whole = {_inner(name) for name in tuned.state_dict()}
    faults = [f"'{name}' is not known" for name in given if name not in needed and name not in whole]
    faults += [f"'{name}' is missing" for name in needed if name not in given]
    if faults and _renames(base):
        faults = []  # under the names of the published checkpoint; peft maps them, and tells what is left
    faults += [
        f"'{name}' is {list(tensor.shape)}, and must be {list(needed[name].shape)}"
        for name, tensor in given.items() if name in needed and tensor.shape != tuple(needed[name].shape)
    ]  # fmt: skip
    faults += [
        f"'{name}' is stored as {tensor.dtype}, not as floating-point numbers" for name, tensor in given.items()
        if name in needed and needed[name].is_floating_point() and not tensor.is_float
    ]  # fmt: skip
    _refuse(faults, files[0])
    tensors = {_outer(without(_inner(name), patterns), name): tensor for name, tensor in load_file(files[0]).items()}
    try:
        result: Any = set_peft_model_state_dict(tuned, tensors)
    except Exception as error:  # a wrapper of peft misses its tensor
        raise ModelError(f"the adapter's tensors do not fit: {describe(error)}", str(files[0]), _MEND) from error
    if _renames(base) and not config.is_prompt_learning:
        loaded = {name for name in tuned.state_dict() if _is_own(name, tuned)}
        _refuse([f"'{name}' is missing" for name in result.missing_keys if name in loaded]
                + [f"'{name}' is not known" for name in result.unexpected_keys], files[0])  # fmt: skip
    return tuned.eval()


_MEND = "save the adapter with save_pretrained of peft, from the unwrapped model"


def _refuse(faults: list[str], file: Path) -> None:
    if faults:
        more = f", and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ModelError(
            f"the adapter's tensors are not those of its config: {'; '.join(faults[:_SHOWN])}{more}", str(file), _MEND
        )


def _inner(name: str) -> str:
    """A tensor's name without peft's own beginning, before which a wrapper may have put its own."""
    return name.partition(_ROOT)[2].removeprefix("model.") if _ROOT in name else name


def _outer(name: str, stored: str) -> str:
    """A plain name with peft's own beginning, as it was in the file."""
    return f"{_ROOT}{'model.' if f'{_ROOT}model.' in stored else ''}{name}" if _ROOT in stored else name


def _renames(base: nn.Module) -> bool:
    """Whether the model's names are others than those of its published checkpoint."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(base, add_legacy=False))  # type: ignore[arg-type]


def _is_own(name: str, tuned: Any) -> bool:
    """Whether a tensor belongs to the adapter."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    return PEFT_TYPE_TO_PREFIX_MAPPING.get(tuned.active_peft_config.peft_type, "-") in name
