"""Whether a module is there, and the command that installs it where it is not. Torch-free."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata


def importable(name: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def install_hint(name: str, distribution: str) -> str:
    """The command that installs the module `name`: by an extra of `distribution` where one lists it."""
    try:
        requirements = metadata.requires(distribution) or [] if distribution else []
    except metadata.PackageNotFoundError:
        requirements = []
    wanted = name.partition(".")[0].lower().replace("_", "-")
    extras = []
    for requirement in requirements:
        package = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
        if extra and (package == wanted or package.startswith(wanted + "-")):
            extras.append(extra.group(1))
    if extras:
        return " or ".join(f"pip install '{distribution}[{extra}]'" for extra in extras)
    return f"pip install {wanted}"
