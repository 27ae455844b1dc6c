"""A model folder as it lies on disk: the safetensors files that hold its weights, and the names and shapes in them.
Nothing is unpickled."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import ModelError
from core.files import read_object
from core.planning.model_folder import ADAPTER_CONFIG

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""A model's weights lie in the first, or in the shards that the second lists."""
ADAPTER = "adapter_model.safetensors"

_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Segments that torch.compile, FSDP, activation checkpointing and Lightning put into names, at any place."""
_FIRST = ("module", "pretrained_model")
"""Segments that DDP and DeepSpeed, and TRL's models with a value head, put before every name."""
_WRAPPED = (*(rf"(?<![^.]){name}\." for name in _ANYWHERE), rf"^(?:(?:{'|'.join(_FIRST)})\.)+")
_HELD = r"^model\.(?=(?:model|transformer|lm_head|score)\.)"
"""A model that another module held as `model`, where that is before every name."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it: F32, BF16, I64 …"""

    @property
    def is_float(self) -> bool:
        """Whether it is a plain floating-point tensor; a quantized one is not."""
        return self.dtype in ("F64", "F32", "F16", "BF16")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of the model, or of the adapter, in `folder`.

    Raises ModelError where there are none, or an index names what is no safetensors file of the folder.
    """
    for name in (ADAPTER,) if (folder / ADAPTER_CONFIG).is_file() else (SINGLE,):
        if (folder / name).is_file():
            return [folder / name]
    index = folder / INDEX
    if (folder / ADAPTER_CONFIG).is_file() or not index.is_file():
        wanted = ADAPTER if (folder / ADAPTER_CONFIG).is_file() else f"{SINGLE}, nor {INDEX}"
        raise ModelError(
            f"the folder has no {wanted}", str(folder), "save with safetensors; other weights are not read"
        )
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError("the index has no weight_map", str(index), "copy it again")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise ModelError(
                f"the index names '{name}', which is no safetensors file of the folder", str(index), "copy it again"
            )
    return [folder / name for name in names]


def stored_tensors(files: Sequence[Path]) -> dict[str, Stored]:
    """Every tensor in the files, by its name. Raises ModelError for a file that cannot be read or a name that comes
    twice."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Stored] = {}
    for path in files:
        try:
            with safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if name in found:
                        raise ModelError(f"the tensor '{name}' comes twice", str(path), "copy the folder again")
                    part = file.get_slice(name)
                    found[name] = Stored(tuple(part.get_shape()), part.get_dtype())
        except (OSError, SafetensorError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"the weights cannot be read: {error}".splitlines()[0], str(path), "copy the file again"
            ) from error
    return found


def wrappers(names: Collection[str]) -> tuple[str, ...]:
    """Patterns of what wrappers have put into these names; without it they are those of the plain model."""
    used: list[str] = []
    plain = list(names)
    for pattern in _WRAPPED:
        if any(re.search(pattern, name) for name in plain):
            used.append(pattern)
            plain = [re.sub(pattern, "", name) for name in plain]
    held = bool(plain) and all(re.search(_HELD, name) for name in plain)
    return (*used, _HELD) if held else tuple(used)


def without(name: str, patterns: Sequence[str]) -> str:
    """The name without what matches the patterns, one after another."""
    for pattern in patterns:
        name = re.sub(pattern, "", name)
    return name


def plain_names(stored: Mapping[str, Stored], patterns: Sequence[str], folder: Path) -> dict[str, Stored]:
    """The tensors under their names in the plain model. Raises ModelError where two become one."""
    plain: dict[str, Stored] = {}
    for name, tensor in stored.items():
        if without(name, patterns) in plain:
            raise ModelError(
                f"the tensor '{without(name, patterns)}' comes twice, once as '{name}'",
                str(folder), "save the unwrapped model",
            )  # fmt: skip
        plain[without(name, patterns)] = tensor
    return plain
