"""What kind of model a folder's config.json describes, asked before any weight is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from core.errors import ModelError
from core.files import read_object

_KINDS = (
    ("IMAGE_TEXT_TO_TEXT", "a model of images and text"),
    ("SPEECH_SEQ_2_SEQ", "a model of speech"),
    ("CTC", "a model of speech"),
    ("IMAGE_CLASSIFICATION", "a model of images"),
    ("AUDIO_CLASSIFICATION", "a model of sound"),
    ("MASKED_LM", "an encoder"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "an encoder-decoder"),
    ("TEXT_ENCODING", "an encoder"),
)
"""Tables of transformers, and what the models in them are; the first that has the model tells."""

_CHOICES = ("attn_implementation", "experts_implementation")
"""What a config may choose of the code that computes, up to kernels that transformers would fetch from the hub and
run. Here the code that loads chooses."""


def read_config(folder: Path, remote_code: bool) -> Any:
    """The transformers config of a causal language model in `folder`.

    remote_code: whether the folder's own classes may run.
    Raises ModelError for a file that cannot be read, quantized weights, and every other kind of model.
    """
    path = folder / "config.json"
    raw = read_object(path)
    _check_quantization(raw, path)
    _check_code(raw, path, remote_code)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
        check_kind(config, path, remote_code)
        _take_choices_back(config)
    except ModelError:
        raise
    except Exception as error:  # a class of transformers raises whatever it likes for a value that it cannot take
        raise ModelError(
            f"the model's config cannot be used: {type(error).__name__}: {' '.join(str(error).split())}"[:300],
            str(path), "take the config.json that belongs to the weights",
        ) from error  # fmt: skip
    return config


def _check_quantization(raw: dict[str, Any], path: Path) -> None:
    """Quantized weights have other names and shapes, and no gradient."""
    for part in _parts(raw):
        if (found := part.get("quantization_config") or part.get("compression_config")) is None:
            continue
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else type(found).__name__
        raise ModelError(
            f"the weights are quantized ({method}), and training starts from plain ones",
            f"{path}: quantization_config",
            "take the model before quantization; quant=nf4 or quant=int8 quantizes it while loading",
        )


def _check_code(raw: dict[str, Any], path: Path, remote_code: bool) -> None:
    """Code may run from the folder itself, whose commit was named, and from nowhere else."""
    listed = raw.get("auto_map")
    classes = [str(name) for name in listed.values()] if isinstance(listed, dict) else []
    if remote_code and (elsewhere := [name for name in classes if "--" in name]):
        raise ModelError(
            f"the model would run code of another repository, '{elsewhere[0]}', at no fixed commit",
            f"{path}: auto_map", "copy that code into the model's folder, and name it in auto_map by its file alone",
        )  # fmt: skip
    if classes and not remote_code and not _is_known(raw.get("model_type")):
        raise ModelError(
            f"the model '{raw.get('model_type')}' brings code of its own, which may not run",
            f"{path}: auto_map", "set model.trust_remote_code=COMMIT if you have read that code at that commit",
        )  # fmt: skip


def _is_known(model_type: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def _parts(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The object and the configs inside it."""
    yield raw
    yield from (value for name, value in raw.items() if name.endswith("_config") and isinstance(value, dict))


def check_kind(config: Any, path: Path, remote_code: bool = False) -> None:
    """Raise ModelError for what is no causal language model. path: of the config's file, for the message."""
    from transformers.models.auto import modeling_auto

    tables = {name: getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING", {}) for name, _ in _KINDS}
    causal = type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    own = remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    kind = next((text for name, text in _KINDS if type(config) in tables[name]), "no language model")
    if getattr(config, "is_encoder_decoder", False):
        kind = kind if "speech" in kind else "an encoder-decoder"
    elif own or (causal and type(config) not in tables["MASKED_LM"]) or (causal and _is_decoder(config)):
        return
    raise ModelError(
        f"'{config.model_type}' is {kind}; only causal language models can be trained and score",
        str(path), "take a decoder-only model: a Llama, a Qwen, a Gemma …",
    )  # fmt: skip


def _is_decoder(config: Any) -> bool:
    """Whether a model that is made as an encoder was made as a decoder here."""
    return bool(getattr(config, "is_decoder", False))


def _take_choices_back(config: Any) -> None:
    """No config chooses the code that computes; the class's own default does."""
    for name in _CHOICES:
        setattr(config, f"_{name}", None)
    for name in ("fusion_config", "kernel_config", "transformers_weights"):
        if hasattr(config, name):
            delattr(config, name)


def check_layers(config: Any, tensors: Collection[str], folder: Path) -> None:
    """Raise ModelError where the config asks for more layers than there are tensors: making them would not end."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > len(tensors):
        raise ModelError(
            f"the config asks for {layers} layers, and the weights hold {len(tensors)} tensors",
            str(folder / "config.json"), "take the config.json that belongs to the weights",
        )  # fmt: skip
