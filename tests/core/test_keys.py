"""The key of an artifact changes with everything that the artifact depends on, and with nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_kit import Lab

from core.config.typed import typed_config
from core.errors import PluginError
from core.planning.make import make_plan
from core.planning.model_folder import adapter_base, folder_fingerprint


def key(arguments: list[str]) -> str:
    cfg, registry, _ = typed_config(arguments)
    return make_plan(cfg, registry).target.key


@pytest.fixture
def own(lab: Lab, tmp_path: Path) -> Lab:
    """A copy of the model and the rows that a test may change."""
    shutil.copytree(lab.model, tmp_path / "model")
    shutil.copytree(lab.data, tmp_path / "data")
    return Lab(tmp_path / "model", tmp_path / "data")


FILES = [
    "pytorch_model.bin", "model.gguf", "consolidated.pth", "tf_model.h5", "modeling_own.py", "inner/modeling.py",
    "merges.txt", "vocab.bpe", "sentencepiece.spm", "tokenizer.model", "chat_template.jinja2",
    "additional_chat_templates/tools.jinja", "generation_config.json", "weights/part.safetensors", "no_suffix",
]  # fmt: skip


def test_every_file_of_a_model_is_part_of_the_key(own: Lab, tmp_path: Path) -> None:
    before = folder_fingerprint(own.model)
    seen = {before}
    for name in FILES:
        path = own.model / name
        path.parent.mkdir(exist_ok=True)
        old = path.read_bytes() if path.exists() else None
        for content in (b"one", b"two"):
            path.write_bytes(content)
            found = folder_fingerprint(own.model)
            assert found not in seen, name
            seen.add(found)
        path.unlink() if old is None else path.write_bytes(old)
        assert folder_fingerprint(own.model) == before, name
    (own.model / ".cache").mkdir()
    (own.model / ".cache" / "lock").write_text("")
    assert folder_fingerprint(own.model) == before
    assert key(own.sft(tmp_path)) != key(own.sft(tmp_path, "stage.lr=1e-3"))
    unchanged = key(own.sft(tmp_path))
    (own.model / "pytorch_model.bin").write_bytes(b"x")
    assert key(own.sft(tmp_path)) != unchanged


def test_the_base_of_an_adapter_is_part_of_the_key(own: Lab, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    record = {"peft_type": "LORA", "base_model_name_or_path": str(own.model)}
    (adapter / "adapter_config.json").write_text(json.dumps(record))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    before = folder_fingerprint(adapter)
    weights = bytearray((own.model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (own.model / "model.safetensors").write_bytes(weights)
    changed = folder_fingerprint(adapter)
    assert changed != before
    shutil.move(own.model, tmp_path / "gone")
    assert folder_fingerprint(adapter) not in (before, changed)


@pytest.mark.parametrize(
    "text", ["", "[]", "{]", '{"base_model_name_or_path": 7}', '{"base_model_name_or_path": null}']
)
def test_a_damaged_adapter_has_no_base_and_no_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    assert adapter_base(tmp_path) is None
    assert len(folder_fingerprint(tmp_path)) == 64


def test_an_adapter_that_stands_on_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    assert len(folder_fingerprint(tmp_path)) == 64


def test_files_that_settings_name_are_part_of_the_key(own: Lab, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("Some text that the model may forget. " * 20)
    words = own.sft(tmp_path, f"retention.texts={text}")
    before = key(words)
    assert key(words) == before
    text.write_text(text.read_text() + "More of it.")
    assert key(words) != before


WRAPPER = """
from core.api import hookimpl

@hookimpl(wrapper=True)
def compute_loss():
    output = yield
    return output  # {0}
"""
STOPPER = """
import os
from core.api import Stop, hookimpl

@hookimpl
def key_parts():
    return {{"patience": os.environ.get("PATIENCE", "1")}}

@hookimpl
def on_step_end(step):
    return Stop("enough") if step >= int(os.environ["PATIENCE"]) else None
# {0}
"""
OBSERVER = """
from core.api import hookimpl

@hookimpl
def on_step_end(step):
    pass  # {0}
"""


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """Writes the module `own_plugin` and has it loaded."""
    import importlib
    import sys

    from core.planning import plugin_code

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PREFTUNE_PLUGINS", "own_plugin")

    def write(source: str, word: str) -> None:
        (tmp_path / "own_plugin.py").write_text(source.format(word))
        sys.modules.pop("own_plugin", None)
        importlib.invalidate_caches()
        plugin_code._code.cache_clear()

    yield write
    sys.modules.pop("own_plugin", None)


@pytest.mark.parametrize(("source", "matters"), [(WRAPPER, True), (STOPPER, True), (OBSERVER, False)])
def test_the_code_of_a_plugin_that_changes_results_is_part_of_the_key(
    lab: Lab, tmp_path: Path, plugged, monkeypatch: pytest.MonkeyPatch, source: str, matters: bool
) -> None:
    monkeypatch.delenv("PREFTUNE_PLUGINS")
    without = key(lab.sft(tmp_path))
    monkeypatch.setenv("PREFTUNE_PLUGINS", "own_plugin")
    plugged(source, "one")
    one = key(lab.sft(tmp_path))
    assert key(lab.sft(tmp_path)) == one
    plugged(source, "two")
    assert (one != without) is matters
    assert (key(lab.sft(tmp_path)) != one) is matters


def test_what_a_plugin_says_is_part_of_the_key(
    lab: Lab, tmp_path: Path, plugged, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugged(STOPPER, "")
    one = key(lab.sft(tmp_path))
    monkeypatch.setenv("PATIENCE", "3")
    assert key(lab.sft(tmp_path)) != one


def test_key_parts_that_are_no_mapping_are_refused(lab: Lab, tmp_path: Path, plugged) -> None:
    plugged("from core.api import hookimpl\n\n@hookimpl\ndef key_parts():\n    return 3\n", "")
    with pytest.raises(PluginError, match="key_parts returned 3, which is no dictionary"):
        key(lab.sft(tmp_path))


def test_an_edit_of_the_plan_is_part_of_the_key(lab: Lab, tmp_path: Path, plugged) -> None:
    source = "from core.api import hookimpl\n\n@hookimpl\ndef modify_plan(plan):\n    plan.target.cfg.stage.lr = {0}\n"
    plugged(source, "0.1")
    one = key(lab.sft(tmp_path))
    plugged(source, "0.2")
    assert key(lab.sft(tmp_path)) != one
