"""`doctor`: what is installed, what is missing or of an untried version, what that costs, the command that mends it,
and what may combine with what. Torch-free: versions are read, nothing heavy is imported."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from importlib import metadata

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import core
from core.config import combinations
from core.errors import ConfigError, describe
from core.platform.hookspecs import API_VERSION
from core.platform.installing import importable, install_hint
from core.platform.kinds import KINDS
from core.platform.registry import Registry
from core.platform.switches import is_switch
from core.scoring.guarded import resolve
from core.settings import peft_methods

WIDTH = 118


@dataclass
class Package:
    """A package that preftune's metadata names."""

    name: str
    tested: str
    """Versions that preftune was tested with, as a specifier; empty for any."""
    extra: str
    """Extra that brings it; empty for a package that preftune cannot do without."""
    installed: str
    """Empty where it is missing."""
    state: str
    """ok, missing, or untested (another version than the tested ones)."""
    mend: str = ""
    costs: list[str] = field(default_factory=list)
    """What cannot be had, or is untested, because of it."""


def packages(registry: Registry) -> list[Package]:
    """Every package of preftune's own metadata that applies to this platform, once each, required ones first."""
    found: dict[tuple[str, bool], Package] = {}
    for line in metadata.requires(combinations.DISTRIBUTION) or []:
        requirement = Requirement(line)
        extra = _extra(requirement)
        if extra is None:
            continue
        key = (canonicalize_name(requirement.name), bool(extra))
        if (key[0], False) in found or (key in found and found[key].state == "ok"):
            continue
        found[key] = _package(requirement, extra)
    chosen = sorted(found.values(), key=lambda item: (bool(item.extra), item.name))
    for package in chosen:
        package.costs = ["everything"] if not package.extra else _costs(package, registry)
    return chosen


def _extra(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to, empty for none; None where it does not apply here."""
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return ""
    extras = metadata.metadata(combinations.DISTRIBUTION).get_all("Provides-Extra") or []
    return next((extra for extra in extras if requirement.marker.evaluate({"extra": extra})), None)


def _package(requirement: Requirement, extra: str) -> Package:
    name, tested = requirement.name, str(requirement.specifier)
    wanted = f"'{name}{tested}'" if not extra else f"'{combinations.DISTRIBUTION}[{extra}]'"
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Package(name, tested, extra, "", "missing", f"pip install {wanted}")
    if requirement.specifier.contains(installed, prereleases=True):
        return Package(name, tested, extra, installed, "ok")
    return Package(name, tested, extra, installed, "untested", f"pip install '{name}{tested}'")


def _costs(package: Package, registry: Registry) -> list[str]:
    """What needs a package: registered parts by the import names that they require, and what the table knows. Of a
    missing one only what cannot be had: another distribution may bring the same module."""
    known = canonicalize_name(package.name)
    found = []
    for label, names, _ in _needs(registry):
        here = [name for name in names if known == (own := canonicalize_name(name)) or known.startswith(f"{own}-")]
        if here and (package.state != "missing" or not all(importable(name) for name in here)):
            found.append(label)
    return [*found, *combinations.NEEDED_BY.get(known, ())]


def _needs(registry: Registry) -> list[tuple[str, tuple[str, ...], str]]:
    """(part as it is typed, import names that it requires, distribution that brings it), of all that require any."""
    chosen = [(kind, entry) for kind in KINDS if kind.base or kind.groups for entry in registry.table(kind).values()]
    return [(kind.choice(entry.spec), entry.spec.requires, entry.owner.distribution)
            for kind, entry in chosen if entry.spec.requires]  # fmt: skip


@dataclass
class NeedyPart:
    """Something to be chosen that needs packages."""

    choice: str
    needs: list[str]
    state: str
    """ok or missing."""
    mend: str


def parts(registry: Registry) -> list[NeedyPart]:
    """Every registered part that requires packages, and whether they can be imported."""
    found = []
    for label, needs, distribution in _needs(registry):
        missing = [name for name in needs if not importable(name)]
        mend = " and ".join(install_hint(name, distribution) for name in missing)
        found.append(NeedyPart(label, list(needs), "missing" if missing else "ok", mend))
    return found


def limits(registry: Registry) -> list[str]:
    """What registered reward models cannot do on this machine, as they say themselves."""
    found = []
    for name, entry in sorted(registry.reward_models.items()):
        if entry.spec.diagnose:
            try:
                found += [f"reward={name}, judge={name}: {line}" for line in resolve(entry.spec.diagnose)()]
            except Exception as error:  # a plugin's own code
                found.append(f"reward={name}: {entry.owner} failed in {entry.spec.diagnose}: {describe(error)}")
    return found


def environment() -> dict[str, str]:
    """Where this runs."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    memory = psutil.virtual_memory()
    return {
        "preftune": f"{core.__version__} (plugin API {API_VERSION})",
        "python": f"{platform.python_version()} at {sys.executable}",
        "platform": platform.platform(),
        "cores": str(cores),
        "memory": f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free",
        "disk": f"{shutil.disk_usage('.').free / 1e9:.1f} GB free here",
        "gpu": "an NVIDIA driver is installed" if shutil.which("nvidia-smi") else "none found",
    }


def methods() -> list[dict[str, str]]:
    """The table of adapter methods: does it train, merge, stand on quantised weights?"""
    rows = []
    for method in sorted({"none", *peft_methods.methods(), *combinations.PROVEN}):
        failing = combinations.FAILING.get(method, "")
        rows.append({
            "method": method,
            "trains": "no" if failing else "yes" if method in combinations.PROVEN else "untried",
            "merges": "no" if method in combinations.UNMERGEABLE else "–" if method == "none" else "yes",
            **{quant: "yes" if method in proven else "no" for quant, proven in combinations.QUANTISED.items()},
            "note": failing or combinations.UNMERGEABLE.get(method, ""),
        })  # fmt: skip
    return rows


def command(arguments: list[str]) -> int:
    """The command `doctor`; 1 where something is missing that preftune cannot do without, or a plugin is broken."""
    if unknown := [argument for argument in arguments if argument != "--json" and not is_switch(argument)]:
        raise ConfigError(f"'doctor' does not take '{unknown[0]}'", mend="doctor [--json]")
    registry = Registry.load(strict=False)
    registry.check_configs()
    found, chosen = packages(registry), parts(registry)
    broken = [record for record in registry.plugins if record.state == "broken"]
    if "--json" in arguments:
        whole = {
            "environment": environment(),
            "packages": [asdict(package) for package in found],
            "parts": [asdict(part) for part in chosen],
            "limits": limits(registry),
            "broken_plugins": [record.as_dict() for record in broken],
            "clashes": [error.what for error in registry.clashes],
            "methods": methods(),
            "rules": [{key: getattr(rule, key) for key in ("name", "level", "message", "mend")}
                      for rule in combinations.RULES],
        }  # fmt: skip
        sys.stdout.write(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(_text(registry, found, chosen))
    unfit = [package for package in found if not package.extra and package.state != "ok"]
    return 1 if unfit or broken or registry.clashes else 0


def _text(registry: Registry, found: list[Package], chosen: list[NeedyPart]) -> str:
    blocks = ["environment\n" + _table([(f"{name}:", value) for name, value in environment().items()])]
    rows: list[tuple[str, ...]] = [("package", "installed", "tested", "state", "for")]
    rows += [
        (item.name, item.installed or "–", item.tested or "any", item.state, item.extra and f"extra '{item.extra}'")
        for item in found
    ]
    blocks.append("packages\n" + _table(rows))
    effect = {"missing": "without it no {}", "untested": "{} may fail"}
    trouble = [
        f"{item.name} is {item.state}: {effect[item.state].format(', '.join(item.costs))}\n    mend: {item.mend}"
        for item in found if item.state != "ok" and item.costs
    ]  # fmt: skip
    trouble += [f"{part.choice} cannot be had: needs {', '.join(part.needs)}\n    mend: {part.mend}"
                for part in chosen if part.state != "ok"]  # fmt: skip
    trouble += [f"{record.owner} is broken: {record.reason}\n    mend: repair it, or pip uninstall "
                f"{record.owner.distribution or record.owner.plugin}"
                for record in registry.plugins if record.state == "broken"]  # fmt: skip
    trouble += [f"{error.what}\n    mend: {error.mend}" for error in registry.clashes]
    trouble += limits(registry)
    blocks.append("what is missing or untested\n" + "\n".join(f"  {line}" for line in trouble or ["nothing"]))
    rows = [("method", "trains", "merges", *combinations.QUANTISED)]
    rows += [(row["method"], row["trains"], row["merges"], *(row[quant] for quant in combinations.QUANTISED))
             for row in methods()]  # fmt: skip
    blocks.append("what may combine: adapter methods (peft=) and quantised base weights (quant=)\n" + _table(rows))
    lines = []
    for rule in combinations.RULES:
        text = rule.message + (f"; {rule.mend}" if rule.mend else "")
        wrapped = textwrap.wrap(text, WIDTH - 6)
        lines += [f"  {rule.level}: {rule.name}", *(f"      {line}" for line in wrapped)]
    blocks.append("what may combine: rules, asked before anything is loaded\n" + "\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        ("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))).rstrip() for row in rows
    )
