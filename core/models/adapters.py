"""Parameter-efficient tuning: from a method's peft name to an adapted model, and what that asks of the step loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ConfigError, ModelError
from core.settings.schema import PeftConfig, Quant

_SYNONYMS = {
    "r": ("init_r", "r", "rank", "n_frequency"),
    "alpha": ("lora_alpha", "alpha"),
    "dropout": ("lora_dropout", "rank_dropout", "module_dropout"),
}
"""Our word to the names that peft's methods give it; the first that the method has is taken, else its only field that
ends with our word (`hira_alpha`, `vera_dropout`)."""

_FACTORS = {"oft_block_size": "r"}
"""Field to one that it excludes: their product is the width of a layer. Setting the second puts the first to 0."""

_IDENTITY_START = {"fourierft": {"init_weights": True}, "c3a": {"init_weights": True}}
"""Options of methods whose own default would start far from the model that was named."""

ALL_LINEAR = "all-linear"
"""peft's word for every linear layer but the head."""

_DEFAULT_VIRTUAL_TOKENS = 20


def base_model(module: nn.Module) -> nn.Module:
    """The plain transformers model inside a possible peft wrapper."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]


def is_prompt_learning(module: nn.Module) -> bool:
    """Whether the module's adapter puts virtual tokens or prefixes before the input, and so changes no layer."""
    return bool(getattr(getattr(module, "active_peft_config", None), "is_prompt_learning", False))


def add_adapter(module: nn.Module, cfg: PeftConfig, task: str) -> nn.Module:
    """The model with a fresh adapter; everything else frozen.

    task: "CAUSAL_LM" or "SEQ_CLS" (whose scoring head trains too).
    Raises ConfigError for a method that peft does not have or a field that the method does not know.
    """
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {str(kind.value).lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if cfg.method not in classes:
        raise ConfigError(f"peft has no method '{cfg.method}'", "peft.method", f"one of: {', '.join(sorted(classes))}")
    config_class = classes[cfg.method]
    known = {item.name for item in fields(config_class)}
    options = _options(cfg, known)
    _name_linear_layers(module, options)
    tied = _ties_embeddings(module)
    if tied and "ensure_weight_tying" in known and _touches_embeddings(options):
        options.setdefault("ensure_weight_tying", True)
    try:
        adapted = get_peft_model(module, config_class(task_type=task, **options), autocast_adapter_dtype=False)
    except (ValueError, TypeError, AttributeError, ImportError, NotImplementedError) as error:
        no_targets = "target_modules" in str(error) and not cfg.targets
        raise ModelError(
            f"peft could not add '{cfg.method}': {error}".splitlines()[0],
            "peft",
            "set peft.targets=[all-linear]" if no_targets else "change peft.r, peft.targets or peft.options",
        ) from error
    for name, parameter in adapted.named_parameters():
        # A counter of AdaLoRA, which peft would train in bf16 and never save.
        if ".ranknum." in name:
            parameter.requires_grad_(False)
    if tied:
        _check_tied(adapted)
    return adapted


def _options(cfg: PeftConfig, known: set[str]) -> dict[str, Any]:
    """Our words and the user's options as fields of the method's config; ConfigError for what it does not know."""
    options: dict[str, Any] = {**_IDENTITY_START.get(cfg.method, {}), **cfg.options}
    for word, names in _SYNONYMS.items():
        value = getattr(cfg, word)
        if value is None:
            continue
        name = next((name for name in names if name in known), None) or _ending(word, known)
        if name is None:
            raise ConfigError(f"the method '{cfg.method}' has no {word}", f"peft.{word}", "leave it unset")
        options.setdefault(name, value)
    if cfg.targets and "target_modules" in known:
        options.setdefault("target_modules", cfg.targets[0] if cfg.targets == [ALL_LINEAR] else list(cfg.targets))
    if "num_virtual_tokens" in known:
        options.setdefault("num_virtual_tokens", _DEFAULT_VIRTUAL_TOKENS)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(
            f"the method '{cfg.method}' has no field '{unknown[0]}'",
            "peft.options",
            f"one of: {', '.join(sorted(known))}",
        )
    for field, other in _FACTORS.items():
        if field in known and options.get(other):
            options.setdefault(field, 0)
    if "target_r" in known:
        _set_budget(options)
    return options


def _name_linear_layers(module: nn.Module, options: dict[str, Any]) -> None:
    """Put the names of the linear layers, without the head, in the place of `all-linear` where peft does not do it
    itself: among other names, and with a choice of layers."""
    targets = options.get("target_modules")
    listed = [targets] if isinstance(targets, str) else list(targets or ())
    if ALL_LINEAR not in listed or (len(listed) == 1 and options.get("layers_to_transform") is None):
        return
    from transformers.pytorch_utils import Conv1D

    head = module.get_output_embeddings()  # type: ignore[operator]
    names = {
        path.rpartition(".")[2] for path, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, Conv1D)) and layer is not head and path != "score"
    }  # fmt: skip
    options["target_modules"] = sorted(names | set(listed) - {ALL_LINEAR})


def _ending(word: str, known: set[str]) -> str | None:
    """The only field that ends with `word`."""
    found = [name for name in known if name.endswith(f"_{word}")]
    return found[0] if len(found) == 1 else None


def _set_budget(options: dict[str, Any]) -> None:
    """AdaLoRA: two thirds of the first rank remain, as in peft's defaults, and a budget phase of two steps at least."""
    from peft import AdaLoraConfig

    first = options.setdefault("init_r", AdaLoraConfig.init_r)
    target = options.setdefault("target_r", max(1, 2 * first // 3))
    if target >= first:
        raise ConfigError(
            f"AdaLoRA starts with rank {first} and must end with a lower one, got target_r={target}",
            "peft.options.target_r",
            "set peft.r above peft.options.target_r",
        )
    # Until `plan_ranks` knows the steps of the run.
    options["total_step"] = max(
        options.get("total_step", 1), _least_steps(options.get("tinit", 0), options.get("tfinal", 0))
    )


def _least_steps(first: int, last: int) -> int:
    """AdaLoRA's warm-up and final phases in steps, and a budget phase of two."""
    return 2 + first + last


_EMBEDDINGS = ("embed", "wte", "word_embeddings", "lm_head", "output_projection")


def _ties_embeddings(module: nn.Module) -> bool:
    """Whether output layer and embedding are one tensor."""
    output, inputs = module.get_output_embeddings(), module.get_input_embeddings()  # type: ignore[operator]
    return output is not None and output.weight is inputs.weight


def _touches_embeddings(options: dict[str, Any]) -> bool:
    if options.get("trainable_token_indices"):
        return True
    return any(part in name for name in options.get("modules_to_save") or () for part in _EMBEDDINGS)


def _check_tied(adapted: nn.Module) -> None:
    """Refuse an adapter on tied layers that does not keep them tied: no plain model could hold the merged result.

    peft's tied low-rank factors are two parameters over one memory, which an optimizer would step twice.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
    from peft.utils.other import TrainableTokensWrapper

    base = adapted.get_base_model()  # type: ignore[operator]
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    whole = [isinstance(end, (ModulesToSaveWrapper, TrainableTokensWrapper, TrainableTokensLayer)) for end in ends]
    layered = [isinstance(end, BaseTunerLayer) and not isinstance(end, TrainableTokensLayer) for end in ends]
    if any(layered) or whole[0] != whole[1]:
        raise ModelError(
            "the model's output layer shares its weights with the embedding, and this adapter would part them",
            "peft.targets, peft.options",
            "leave both layers out, or train them whole: peft.options.modules_to_save=[embed_tokens] with peft=lora",
        )


def quantization_config(quant: Quant, compute: torch.dtype) -> Any | None:
    """bitsandbytes config for loading frozen base weights, or None."""
    if quant is Quant.none:
        return None
    from transformers import BitsAndBytesConfig

    if quant is Quant.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_differentiable(module: nn.Module) -> nn.Module:
    """Keep bitsandbytes' 4-bit layers on their plain road. Returns the module.

    On a CPU with AVX512-BF16 the first forward pass in eval mode would repack the weights for a kernel that passes no
    gradient on and rounds to bf16: an adapter in deeper layers would never learn, without a word.
    """
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return module


# -- what an adapter asks of the step loop ---------------------------------------------------------------------------


def orthogonality(module: nn.Module) -> Tensor | None:
    """AdaLoRA's penalty gamma * mean ||P^T P - I||_F over its factors (arXiv:2303.10512, eq. 4), []; None for other
    adapters."""
    if not is_rank_scheduled(module):
        return None
    config: Any = module.active_peft_config
    gamma = config.orth_reg_weight
    if not gamma:
        return None
    norms = []
    for name, factor in module.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            tall = factor.float() if "lora_B" in name else factor.float().T
            norms.append(torch.linalg.matrix_norm(tall.T @ tall - torch.eye(tall.shape[1], device=tall.device)))
    return gamma * torch.stack(norms).mean()


def is_rank_scheduled(module: nn.Module) -> bool:
    """Whether the adapter spreads its rank by importance while it trains (AdaLoRA)."""
    return hasattr(getattr(module, "base_model", None), "update_and_allocate")


def plan_ranks(module: nn.Module, cfg: PeftConfig, total_steps: int) -> None:
    """Let the adapter's rank schedule end with the run, unless the user named its steps."""
    if not is_rank_scheduled(module) or "total_step" in cfg.options:
        return
    config: Any = module.active_peft_config
    steps = max(total_steps, _least_steps(config.tinit, config.tfinal))
    module.base_model.rankallocator.set_total_step(steps)  # type: ignore[union-attr, operator]


def spread_rank(module: nn.Module, step: int) -> None:
    """After optimizer step `step` (from 1), gradients still standing: update importances, zero the least important."""
    factors = [p for name, p in module.named_parameters() if "lora_" in name and p.requires_grad]
    if all(factor.grad is not None for factor in factors):
        module.base_model.update_and_allocate(step)  # type: ignore[union-attr, operator]


def settle(module: nn.Module) -> None:
    """Before an export: what the file will not hold is zero in memory too."""
    if is_rank_scheduled(module) and (pattern := module.active_peft_config.rank_pattern):  # type: ignore[union-attr]
        allocator = module.base_model.rankallocator  # type: ignore[union-attr]
        allocator.mask_using_rank_pattern(module.base_model.model, pattern)  # type: ignore[union-attr, operator]


_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """What a resumed run needs beside the weights: AdaLoRA's importances and kept ranks; empty for other adapters."""
    if not is_rank_scheduled(module):
        return {}
    allocator: Any = module.base_model.rankallocator  # type: ignore[union-attr]
    config: Any = module.active_peft_config
    state = {f"{kind}/{name}": tensor for kind in _IMPORTANCE for name, tensor in getattr(allocator, kind).items()}
    pattern = config.rank_pattern or {}
    return state | {f"kept/{name}": torch.tensor(kept) for name, kept in pattern.items()}


def load_adapter_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Counterpart of `adapter_state`."""
    if not is_rank_scheduled(module):
        return
    allocator = module.base_model.rankallocator  # type: ignore[union-attr]
    for key, tensor in state.items():
        kind, name = key.split("/", 1)
        if kind in _IMPORTANCE:
            getattr(allocator, kind)[name] = tensor
    kept = {key.split("/", 1)[1]: tensor.tolist() for key, tensor in state.items() if key.startswith("kept/")}
    module.active_peft_config.rank_pattern = kept or None  # type: ignore[union-attr]


@contextmanager
def adapter_dropout(module: nn.Module) -> Iterator[None]:
    """Within the block the adapter's own dropout works; everything else stays in eval mode."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    parts: list[nn.Module] = []
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            inner = set(layer.get_base_layer().modules())
            parts += [part for part in layer.modules() if part not in inner]
    for part in parts:
        part.training = True
    try:
        yield
    finally:
        for part in parts:
            part.training = False
