"""Whether the tensors in a model's files are those that the model needs: by name, shape and type, before one is read.

transformers draws a missing tensor at random and leaves an unknown one out, with a warning at most.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ModelError, describe
from core.models.checkpoint import Stored

_SHOWN = 4
"""Names in a message."""


def check_fit(skeleton: nn.Module, stored: Mapping[str, Stored], folder: Path, spare: Collection[str] = ()) -> None:
    """Raise ModelError naming each tensor that is missing, unknown, double, or of another shape or type.

    skeleton: the model without weights, on the meta device. stored: the tensors under their names in the files, without
    wrappers. spare: names that may be there beside those of the model.
    """
    faults = list(_faults(skeleton, stored, spare))
    if faults:
        more = f", and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ModelError(
            f"the weights are not those of the model: {'; '.join(faults[:_SHOWN])}{more}",
            str(folder),
            "save the whole plain model with save_pretrained, beside the config that it has",
        )


def _faults(model: Any, stored: Mapping[str, Stored], spare: Collection[str]) -> Iterator[str]:
    needed: dict[str, Tensor] = model.state_dict()
    sources, converters = _sources(model, needed, stored)
    given: dict[str, Tensor] = {}
    for target, names in sources.items():
        for name in names:
            if needed[target].is_floating_point() and not stored[name].is_float:
                yield f"'{name}' is stored as {stored[name].dtype}, not as floating-point numbers"
        if target not in converters:
            if len(names) > 1:
                yield f"'{names[0]}' and '{names[1]}' are one tensor of the model"
            given[target] = _meta(stored[names[0]])
            continue
        yield from _gaps(names)
        try:
            given |= _converted(converters[target], model, target, names, stored)
        except Exception as error:  # a conversion raises whatever torch says of shapes that do not go together
            yield f"'{names[0]}' and those beside it cannot be put together ({describe(error)})"
            given[target] = needed[target]
    for target, tensor in given.items():
        if target in needed and tensor.shape != needed[target].shape:
            names = sources.get(target, [])
            label = names[0] if len(names) == 1 else target
            yield f"'{label}' is {list(tensor.shape)}, and must be {list(needed[target].shape)}"

    mapped = {name for names in sources.values() for name in names}
    ignored = [re.compile(pattern) for pattern in _ignored(model)]
    for name in stored:
        if name not in mapped and name not in spare and not any(one.search(name) for one in ignored):
            yield f"'{name}' is not known"
    tied = _tied_groups(model)
    yield from (f"'{name}' is missing" for name in needed if given.keys().isdisjoint({name, *tied.get(name, ())}))


_Conversion = tuple[Any, dict[str, str]]
"""A converter of transformers, and the pattern of it that each name in the files matches."""


def _sources(
    model: Any, needed: dict[str, Tensor], stored: Mapping[str, Stored]
) -> tuple[dict[str, list[str]], dict[str, _Conversion]]:
    """(name in the model to the names in the files that it is made of, the conversions where there are any).

    Files hold the names of the published checkpoint, which transformers maps to the model's: one to one, or several
    that are put together. The same steps as in its loader.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    sources: dict[str, list[str]] = defaultdict(list)
    conversions: dict[str, _Conversion] = {}
    for name in stored:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, needed)
        if target not in needed and name in needed:
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, needed)
        if target not in needed:
            continue
        sources[target].append(name)
        if pattern is not None:
            conversions.setdefault(target, (copy.deepcopy(by_pattern[pattern]), {}))[1][name] = pattern
    return sources, conversions


def _meta(entry: Stored) -> Tensor:
    return torch.empty(entry.shape, device="meta")


def _converted(
    conversion: _Conversion, model: Any, target: str, names: list[str], stored: Mapping[str, Stored]
) -> dict[str, Tensor]:
    """What transformers makes of several tensors of the files: name in the model to its shape, on the meta device."""
    from transformers.core_model_loading import dot_natural_key

    converter, patterns = conversion
    for name in sorted(names, key=dot_natural_key):
        converter.add_tensor(target, name, patterns.get(name, name), _meta(stored[name]))
    made = converter.convert(target, model=model, config=model.config)
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def _gaps(names: list[str]) -> Iterator[str]:
    """Tensors that are stacked by a number in their name must be numbered from 0 without a gap: transformers stacks
    what it finds, in order."""
    series: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name in names:
        for number in re.finditer(r"(?<=\.)\d+(?=\.)", name):
            series[name[: number.start()], name[number.end() :]].append(int(number[0]))
    for (before, after), numbers in series.items():
        wrong = next((at for at, number in enumerate(sorted(numbers)) if at != number), None)
        if len(numbers) > 1 and wrong is not None:
            yield f"'{before}{wrong}{after}' is missing"


def _ignored(model: Any) -> list[str]:
    """Patterns of names that transformers knows to be superfluous: other heads, buffers that are computed now."""
    patterns = list(model._keys_to_ignore_on_load_unexpected or ())
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.append(r"(^|\.)position_ids$")
    return patterns


def _tied_groups(model: Any) -> dict[str, set[str]]:
    """Name to the names of what is the same tensor."""
    groups: dict[str, set[str]] = defaultdict(set)
    for target, source in model.all_tied_weights_keys.items():
        groups[source] |= {source, target}
    return {name: group for group in groups.values() for name in group}


def saved_names(skeleton: Any) -> set[str]:
    """The names under which save_pretrained writes the model's tensors."""
    from transformers.core_model_loading import revert_weight_conversion

    once = {
        name: tensor for name, tensor in skeleton.state_dict().items() if name not in skeleton.all_tied_weights_keys
    }
    return set(revert_weight_conversion(skeleton, once))


def check_ties(module: Any, skeleton: Any, folder: Path) -> None:
    """Raise ModelError where the config makes one tensor of two, and the files hold two that differ: one of them would
    be lost when the model is saved."""
    for target, source in skeleton.all_tied_weights_keys.items():
        try:
            one, other = module.get_parameter(target), module.get_parameter(source)
        except AttributeError:  # of a head that this model does not have
            continue
        if one is not other:
            raise ModelError(
                f"the config makes '{target}' and '{source}' one tensor, and the weights hold two that differ",
                str(folder / "config.json"), "set tie_word_embeddings to false there if both belong to the model",
            )  # fmt: skip
