"""Which adapter methods the installed peft library has and which fields their configs take, read from its source.

peft is never imported: that would take seconds and load torch before the configuration was accepted.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path

INTERNAL = frozenset(
    {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
)
"""Fields that preftune fills in itself."""


@lru_cache(maxsize=1)
def _tuners() -> Path | None:
    """Folder peft/tuners of the installed library; None when peft is not there."""
    spec = importlib.util.find_spec("peft")
    places = list(spec.submodule_search_locations or []) if spec else []
    folder = Path(places[0], "tuners") if places else None
    return folder if folder is not None and folder.is_dir() else None


@lru_cache(maxsize=1)
def methods() -> tuple[str, ...]:
    """Names of the installed library's methods, sorted; empty when peft is not there."""
    folder = _tuners()
    if folder is None:
        return ()
    return tuple(sorted(entry.name for entry in folder.iterdir() if (entry / "config.py").is_file()))


def _classes(file: Path) -> dict[str, ast.ClassDef]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _sets_type(node: ast.ClassDef, method: str) -> bool:
    """Whether the class body holds `self.peft_type = PeftType.<METHOD>`."""
    return any(
        isinstance(part, ast.Attribute)
        and isinstance(part.value, ast.Name)
        and part.value.id == "PeftType"
        and part.attr.lower() == method
        for part in ast.walk(node)
    )


def _find_class(name: str, folder: Path) -> ast.ClassDef | None:
    """A class that another module of peft declares."""
    for file in (folder.parent / "config.py", folder / "lycoris_utils.py", *sorted(folder.glob("*/config.py"))):
        try:
            if f"class {name}(" not in file.read_text(encoding="utf-8"):
                continue
        except OSError:
            continue
        if (found := _classes(file).get(name)) is not None:
            return found
    return None


@lru_cache(maxsize=64)
def option_fields(method: str) -> tuple[str, ...] | None:
    """Fields of the method's config dataclass, inherited ones included; None when they cannot be read."""
    folder = _tuners()
    if folder is None or method not in methods():
        return None
    local = _classes(folder / method / "config.py")
    chosen = next((node for node in local.values() if _sets_type(node, method)), None)
    if chosen is None:
        return None
    names: list[str] = []
    queue, seen = [chosen], {chosen.name}
    while queue:
        node = queue.pop(0)
        targets = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
        for base in node.bases:
            name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
            if not name or name in seen:
                continue
            seen.add(name)
            parent = local.get(name) or _find_class(name, folder)
            if parent is not None:
                queue.append(parent)
    return tuple(dict.fromkeys(name for name in names if name not in INTERNAL and not name.startswith("_")))


def meaning(method: str, option: str) -> str | None:
    """Which of our settings an option of a method's config stands for: `r`, `alpha`, `dropout`; None for any other."""
    if option in ("r", "rank", "init_r", "rank_pattern"):
        return "r"
    if option in ("alpha", "lora_alpha", f"{method}_alpha", "alpha_pattern"):
        return "alpha"
    return "dropout" if option.endswith("dropout") else None
