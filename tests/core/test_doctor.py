"""`doctor` tells what is missing, what that costs and how to mend it."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from core.__main__ import main
from core.commands import doctor
from core.platform.registry import Registry

NEEDY = """
    from dataclasses import dataclass
    from core.api import TrackerConfig, TrackerSpec, hookimpl
    @dataclass
    class Config(TrackerConfig):
        pass
    @hookimpl
    def register_trackers():
        return [TrackerSpec("needy", Config, "acme_impl:Tracker", requires=("not_there_at_all",))]
"""


@pytest.fixture
def requirements(monkeypatch):
    """preftune's requirements as the test writes them."""
    lines: list[str] = []
    monkeypatch.setattr(metadata, "requires", lambda _: lines)
    return lines


def found(lines: list[str], requirements: list[str]) -> dict[str, doctor.Package]:
    requirements[:] = lines
    return {package.name: package for package in doctor.packages(Registry.load(strict=False))}


def test_states_and_mends(acme, requirements):
    table = found(["pluggy>=1", "rich>=99", "no-such-package>=2", "hypothesis<1; extra == 'dev'"], requirements)
    assert table["pluggy"].state == "ok" and table["pluggy"].installed == metadata.version("pluggy")
    assert table["rich"].state == "untested" and table["rich"].mend == "pip install 'rich>=99'"
    assert table["no-such-package"].state == "missing" and table["no-such-package"].costs == ["everything"]
    assert table["no-such-package"].mend == "pip install 'no-such-package>=2'"
    assert (table["hypothesis"].extra, table["hypothesis"].state) == ("dev", "untested")


def test_a_requirement_of_another_platform_is_left_out(acme, requirements):
    assert found(["pluggy; sys_platform == 'plan9'"], requirements) == {}


def test_a_package_costs_the_parts_that_require_it(acme, make_distribution, requirements):
    make_distribution("needy", NEEDY)
    table = found(["not-there-at-all; extra == 'cpu'", "bitsandbytes; extra == 'cpu'"], requirements)
    assert table["not-there-at-all"].costs == ["tracker=needy"]
    assert table["not-there-at-all"].mend == "pip install 'preftune[cpu]'"
    assert "quant=nf4" in table["bitsandbytes"].costs
    (part,) = [part for part in doctor.parts(Registry.load()) if part.choice == "tracker=needy"]
    assert part.state == "missing" and part.mend == "pip install 'acme[cpu]'"


def test_another_distribution_of_the_same_module_serves(acme, make_distribution, requirements):
    make_distribution("needy", NEEDY.replace("not_there_at_all", "pluggy"))
    assert found(["pluggy-gpu; extra == 'gpu'"], requirements)["pluggy-gpu"].costs == []


def test_the_command_tells_all_of_it(acme, make_distribution, capsys):
    make_distribution("needy", NEEDY)
    make_distribution("torn", "raise RuntimeError('torn apart')", distribution="torn-dist", version="0.9")
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    for part in ("python:", "pluggy", "tracker=needy cannot be had: needs not_there_at_all", "torn-dist 0.9",
                 "torn apart", "pip uninstall torn-dist", "quantised-base-needs-adapter", "lora "):  # fmt: skip
        assert part in text, part
    assert main(["doctor", "--json"]) == 1
    whole = json.loads(capsys.readouterr().out)
    assert {"environment", "packages", "parts", "limits", "broken_plugins", "clashes", "methods", "rules"} == set(whole)
    assert next(row for row in whole["methods"] if row["method"] == "lora")["nf4"] == "yes"
    assert main(["doctor", "--what"]) == 2


def test_this_environment_is_whole(capsys):
    assert main(["doctor"]) == 0, capsys.readouterr().out
