"""A provider that fails is named in the first line; seconds are counted once, for the plugin that took them."""

from __future__ import annotations

import time

import pytest

import core.api
import core.torch_api
from core.errors import DataError
from core.platform.deprecation import Renamed
from core.platform.hookspecs import API_ATTRIBUTE, API_VERSION, Deprecated, hookspec
from core.platform.owners import Owner
from core.platform.providers import ProviderError, Providers, Watched, blamed
from core.platform.registry import Registry

ACME = Owner("acme", "acme-dist", "1.2")


def test_the_first_line_names_plugin_hook_and_error():
    with pytest.raises(ProviderError) as caught, blamed(ACME, "compute_loss"):
        raise ZeroDivisionError("no\ntokens")
    assert str(caught.value).splitlines()[0] == (
        "plugin 'acme' of acme-dist 1.2 failed in compute_loss: ZeroDivisionError: no tokens"
    )
    assert "test_providers.py, line" in caught.value.where and isinstance(caught.value.__cause__, ZeroDivisionError)


def test_errors_of_our_own_pass():
    with pytest.raises(DataError, match="row 3"), blamed(ACME, "build_data"):
        raise DataError("row 3")
    with pytest.raises(KeyboardInterrupt), blamed(ACME, "fit"):
        raise KeyboardInterrupt


def test_seconds_of_a_plugin_inside_another_are_its_own():
    providers, other = Providers(), Owner("engine", "e", "1")
    with providers.at(ACME, "collect_batch"):
        time.sleep(0.02)
        with providers.at(other, "generate"):
            time.sleep(0.05)
    assert 0.02 <= providers.seconds["acme"] < 0.05 <= providers.seconds["engine"]


def test_an_engine_is_blamed_for_its_own_faults():
    class Engine:
        name = "broken"

        def generate(self):
            return 1 / 0

    providers = Providers()
    engine = Watched(Engine(), providers, Owner("engine", "e", "1"), ("generate",))
    assert engine.name == "broken"
    with pytest.raises(ProviderError, match="plugin 'engine' of e 1 failed in generate"), providers.at(ACME, "collect"):
        engine.generate()


def test_stage_hooks_are_watched_from_outside_every_wrapper(acme, make_module, activate, monkeypatch):
    wrapper = """
        from core.api import hookimpl
        @hookimpl(wrapper=True)
        def total_steps(run):
            return 2 * (yield)
    """
    monkeypatch.setenv("PREFTUNE_PLUGINS", f"acme_stages,{make_module(wrapper)}")
    registry = Registry.load()
    providers = Providers()
    activate(registry, "sft", providers)
    assert registry.hook.total_steps(run=None, data=None) == 6
    assert list(providers.seconds) == [registry.owner_of(registry.stages[("sft", "")].spec).plugin]


STAGE = """
    from dataclasses import dataclass
    from core.api import StageConfig, StageSpec, hookimpl
    @dataclass
    class Config(StageConfig):
        pass
    @hookimpl
    def register_stages():
        return [StageSpec("mine", Config, "{module}:Stage", "sft")]
    @hookimpl
    def modify_plan(plan):
        raise KeyError("plan")
"""


def test_plan_edits_and_constructors_are_blamed(acme, make_distribution, make_module, activate, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFTUNE_PLUGINS", "acme_stages,plugins.optimizers")
    impl = make_module(
        "import core.torch_api\n"
        "class Stage(core.torch_api.Stage):\n    def __init__(self, run): raise ValueError('made wrong')"
    )
    make_distribution("mine", STAGE.format(module=impl), distribution="mine-dist", version="3")
    registry = Registry.load()
    with pytest.raises(ProviderError, match=r"plugin 'mine' of mine-dist 3 failed in .*ValueError: made wrong"):
        activate(registry, "mine")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    from core.config.typed import typed_config
    from core.planning.make import make_plan

    words = ["stage=mine", "model.source=sshleifer/tiny-gpt2", f"data.path={tmp_path / 'rows.jsonl'}"]
    config, registry, _ = typed_config(words)
    with pytest.raises(ProviderError, match="plugin 'mine' of mine-dist 3 failed in modify_plan: KeyError"):
        make_plan(config, registry)


# ---- versions of the API ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (str(API_VERSION + 1), "update preftune"),
        ("0", "update it"),
        ("'1'", "core.api.API_VERSION"),
        ("True", "number"),
    ],
)
def test_another_api_is_refused_and_named(acme, make_distribution, version, reason):
    make_distribution("old", f"{API_ATTRIBUTE} = {version}", distribution="old-dist", version="7")
    registry = Registry.load()
    (warning,) = registry.warnings
    assert "plugin 'old' of old-dist 7" in warning and reason in warning
    assert ("sft", "") in registry.stages


def test_the_api_version_is_told(acme, make_distribution):
    make_distribution("new", f"{API_ATTRIBUTE} = {API_VERSION}")
    records = {record.owner.plugin: record.api for record in Registry.load().plugins}
    assert records["new"] == API_VERSION and records["acme_stages"] is None


def test_the_built_in_plugins_have_the_present_api():
    records = [record for record in Registry.load().plugins if record.owner.distribution == "preftune"]
    assert records and {record.api for record in records} == {API_VERSION}


def test_a_hook_that_goes_names_its_replacement(acme, make_distribution, monkeypatch):
    class Old:
        @hookspec(warn_on_impl=Deprecated("'register_old' goes with API 2; write 'register_stages' instead"))
        def register_old(self):
            """A hook of an earlier time."""

    import pluggy

    class Manager(pluggy.PluginManager):
        def __init__(self, name):
            super().__init__(name)
            self.add_hookspecs(Old)

    monkeypatch.setattr(pluggy, "PluginManager", Manager)
    make_distribution("late", "from core.api import hookimpl\n@hookimpl\ndef register_old(): return []")
    registry = Registry.load()
    (warning,) = registry.warnings
    assert warning == "plugin 'late' of acme 1.2: 'register_old' goes with API 2; write 'register_stages' instead"
    assert next(item for item in registry.plugins if item.owner.plugin == "late").state == "loaded"


@pytest.mark.parametrize(("until", "state"), [(API_VERSION + 1, "loaded"), (API_VERSION, "broken")])
def test_a_name_that_was_changed_works_until_its_api_version(acme, make_distribution, monkeypatch, until, state):
    monkeypatch.setitem(core.api.RENAMED, "TaskSpec", Renamed("StageSpec", until))
    make_distribution("late", "from core.api import TaskSpec, StageSpec\nassert TaskSpec is StageSpec")
    registry = Registry.load()
    (warning,) = registry.warnings
    assert next(item for item in registry.plugins if item.owner.plugin == "late").state == state
    assert warning.startswith("plugin 'late' of acme 1.2") and "StageSpec" in warning
    if state == "loaded":
        assert warning.endswith(f"goes with API {until}; write StageSpec instead")
    with pytest.raises(AttributeError, match="has no attribute 'TaskSpecs'"):
        core.api.TaskSpecs  # noqa: B018


@pytest.mark.parametrize("name", core.torch_api.RENAMED)
def test_a_name_of_the_first_api_says_what_to_write(name):
    with pytest.raises(ImportError, match=f"core.torch_api.{name} went with API 2; write [a-z_.]+"):
        getattr(core.torch_api, name)


def test_one_module_under_two_names_is_overridden(acme, make_distribution, make_module, monkeypatch):
    module = make_distribution("first", "VALUE = 1")
    monkeypatch.setenv("PREFTUNE_PLUGINS", f"acme_stages,{module}")
    record = next(item for item in Registry.load().plugins if item.owner.plugin == module)
    assert record.state == "overridden" and "'first'" in record.reason
