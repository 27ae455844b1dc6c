"""The documentation says what the code does: hooks, commands, links, keys, file names. No torch."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from core.commands import reference
from core.config.typed import typed_config
from core.data.info import DatasetInfo, PartInfo, SourceInfo, TransformReport
from core.jsonl import METRICS_FILE, SAMPLES_FILE
from core.planning.plan_record import PlanRecord, StageEntry, StagePreview, TrainedRow
from core.platform import hookspecs
from core.platform.registry import Registry
from core.results import ChainStep, MetricChange, Retained, StageResult
from core.settings import schema
from core.settings.fields import field_docs

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + [*ROOT.glob("docs/**/*.md")]
)
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
HOOK_CLASSES = ("RegistrationHooks", "StageHooks", "ObserverHooks")
COMMAND = re.compile(r"^((?:[A-Z_]+=\S* )*)(?:python -m core|preftune)(?: (.*))?$")


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# 1. Hooks.


def hook_signatures() -> list[str]:
    """`name(argument: Type, …) -> Type` of every hook, as it is written in core/platform/hookspecs.py."""
    tree = ast.parse(Path(hookspecs.__file__).read_text(encoding="utf-8"))
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in HOOK_CLASSES:
            for function in node.body:
                if isinstance(function, ast.FunctionDef):
                    arguments = re.sub(r"^self(, )?", "", ast.unparse(function.args))
                    found.append(f"{function.name}({arguments}) -> {ast.unparse(function.returns)}")
    return found


def test_all_hook_classes_are_looked_at():
    classes = {name for name, value in vars(hookspecs).items() if isinstance(value, type) and name.endswith("Hooks")}
    assert classes == set(HOOK_CLASSES)


@pytest.mark.parametrize("signature", hook_signatures())
def test_each_hook_is_documented_with_its_signature(signature):
    assert f"`{signature}`" in TEXTS["docs/plugins.md"].replace("\\|", "|")


# 2. Links.


def anchors(text: str) -> set[str]:
    """Fragments of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", TEXTS)
def test_relative_links_lead_somewhere(name):
    prose = re.sub(r"^```.*?^```", "", TEXTS[name], flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        place = (ROOT / name).parent / path if path else ROOT / name
        assert place.exists(), f"{name}: {target}"
        if fragment:
            assert fragment in anchors(place.read_text(encoding="utf-8")), f"{name}: {target}"


def test_every_page_is_reachable_from_the_readme():
    text = TEXTS["README.md"] + TEXTS["docs/adr/README.md"].replace("](", "](docs/adr/")
    for name in TEXTS:
        assert name in ("README.md",) or f"]({name})" in text, name


# 3. Commands.


def command_lines() -> list[tuple[str, str]]:
    """(page, line) of each command of ours in a bash block."""
    lines = [(name, line.strip()) for name, text in TEXTS.items() for block in fenced(text, "bash")
             for line in block.splitlines()]  # fmt: skip
    return [(name, line) for name, line in lines if COMMAND.match(line)]


def runs() -> list[tuple[str, str]]:
    """Those of them that start a run in this process, without Hydra's flags."""
    found = []
    for name, line in command_lines():
        words = shlex.split(COMMAND.match(line)[2] or "")
        if words and words[0] not in Registry.load().commands and not any(word.startswith("-") for word in words):
            found.append((name, line))
    return found


CODE_PAGES = ("docs/plugins.md", "docs/tutorial.md", "docs/building-sets.md", "docs/cft.md")
"""Pages with modules for plugin authors."""


def write_modules(page: str, folder: Path) -> None:
    """Write a page's Python blocks; the first line of each names its file."""
    for block in fenced(TEXTS[page], "python"):
        first, _, code = block.partition("\n")
        assert re.fullmatch(r"# [\w/]+\.py", first), f"{page}: a block does not name its file: {first}"
        file = folder / first.removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, encoding="utf-8")
        compile(code, str(file), "exec")


@pytest.fixture
def documented_plugins(tmp_path, monkeypatch):
    """The modules that the pages print, on sys.path; those of the tutorial are loaded as plugins."""
    for page in CODE_PAGES:
        write_modules(page, tmp_path)
    monkeypatch.setenv("PREFTUNE_PLUGINS", "acme_simpo")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if module.partition(".")[0].startswith("acme"):
            del sys.modules[module]


@pytest.mark.parametrize(("page", "line"), runs())
def test_documented_runs_compose(page, line, documented_plugins, monkeypatch):
    environment, words = COMMAND.match(line).groups()
    for setting in environment.split():
        key, _, value = setting.partition("=")
        if key.startswith("PREFTUNE_"):
            monkeypatch.setenv(key, value)
    config, registry, _ = typed_config(shlex.split(words))
    assert (config.stage.name, config.stage.algorithm) in registry.stages, page


def test_other_commands_are_known(documented_plugins):
    from core.commands.help import stage_help

    registry = Registry.load()
    for page, line in command_lines():
        words = shlex.split(COMMAND.match(line)[2] or "")
        if words and words[0].isalpha():
            assert words[0] in registry.commands, f"{page}: {line}"
        if words and words[0] == "help" and not line.startswith("PYTHONPATH"):
            assert stage_help(words[1:], registry)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for name, text in TEXTS.items():
        for target in re.findall(r"(?:^|`)(?:EXTRA=\w+ )?make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, f"{name}: make {target}"


@pytest.mark.parametrize("page", TEXTS)
def test_python_blocks_stand_where_they_are_tested(page):
    assert not fenced(TEXTS[page], "python") or page in CODE_PAGES


def test_data_blocks_can_be_read():
    for language, read in (("json", json.loads), ("yaml", yaml.safe_load), ("toml", tomllib.loads)):
        blocks = [(page, block) for page, text in TEXTS.items() for block in fenced(text, language)]
        assert blocks, language
        for page, block in blocks:
            assert read(block) is not None, page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "plugins"),
    [
        ("docs/tutorial.md", "acme_simpo"),
        ("docs/plugins.md", "acme_slic,acme_cispo,acme_seen,acme_vowels,acme_pairs"),
    ],
)
def test_the_pages_own_tests_pass(page, plugins, tmp_path):
    """The stage that a page makes, through the test file that it prints, beside the page's other plugins."""
    write_modules(page, tmp_path)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "PREFTUNE_PLUGINS": plugins}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_the_reference_is_current():
    assert TEXTS["docs/reference.md"] == reference.page(Registry.load(), own=True), "run `make docs`"


def test_the_documented_stage_loads(documented_plugins, monkeypatch):
    monkeypatch.setenv("PREFTUNE_PLUGINS", "acme_slic,acme_cispo,acme_vowels,acme_pairs,acme_seen,acme_directives")
    registry = Registry.load()
    assert ".pairs" in registry.readers and "ask_say" in registry.dialects
    assert {("slic", ""), ("rlhf", "cispo")} <= set(registry.stages)
    assert "vowels" in registry.reward_models and "acme" in registry.text_sets
    assert not [line for line in registry.warnings if "acme" in line]


# 4. What there is.


def own(table) -> list:
    found = [key for key, entry in table.items() if entry.owner.distribution == "preftune"]
    assert found
    return found


def test_readme_lists_every_stage_and_algorithm():
    rows = [line for line in TEXTS["README.md"].splitlines() if line.startswith("| `")]
    for stage, algorithm in own(Registry.load().stages):
        wanted = f"| `{stage}` | `{algorithm}`" if algorithm else f"| `{stage}` | |"
        assert any(row.startswith(wanted) for row in rows), (stage, algorithm)


def test_every_reward_and_its_settings_are_documented():
    text = TEXTS["docs/rewards.md"]
    for name in own(Registry.load().reward_models):
        spec = Registry.load().reward_models[name].spec
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}` |")), "")
        assert f"| {'yes' if spec.isolated else 'no'}" in row, name
        for doc in field_docs(spec.config):
            assert doc.owner == "RewardConfig" or f"`{doc.name}`" in row, f"{name}: {doc.name}"


def test_every_engine_setting_is_documented_with_its_default():
    for name in own(Registry.load().engines):
        for doc in field_docs(Registry.load().engines[name].spec.config):
            if doc.owner != "RolloutConfig":
                row = f"| `rollout.{doc.name}` | {doc.default} |"
                assert row in TEXTS["docs/rollouts.md"], row


def test_every_transform_and_its_settings_are_documented():
    transforms = Registry.load().transforms
    for name in own(transforms):
        page = re.split(r"^### ", TEXTS["docs/building-sets.md"], flags=re.MULTILINE)
        section = next(part for part in page if part.startswith(f"`{name}`"))
        for doc in field_docs(transforms[name].spec.config):
            assert doc.name == "name" or f"`{doc.name}`" in section, f"{name}: {doc.name}"


def test_config_page_has_every_key_with_its_default():
    text = TEXTS["docs/config.md"]
    parts = {"stage": schema.StageConfig, "model": schema.ModelConfig, "peft": schema.PeftConfig,
             "data": schema.DataConfig, "runtime": schema.RuntimeConfig, "eval": schema.EvalConfig,
             "pipeline": schema.PipelineConfig}  # fmt: skip
    registry = Registry.load()
    tables = {"tracker": registry.trackers, "optimizer": registry.optimizers}
    docs = [(f"{part}.{doc.name}", doc) for part, config in parts.items() for doc in field_docs(config)]
    docs += [
        (f"{group}.{doc.name}", doc)
        for group, table in tables.items()
        for name in own(table)
        for doc in field_docs(table[name].spec.config)
    ]
    for key, doc in docs:
        if doc.name in ("name", "algorithm"):
            continue
        default = doc.default if doc.default.startswith("(") else f"`{doc.default}`"
        row = f"| `{key}` | {doc.type} | {default} | {doc.doc} |"
        assert row in text.replace("\\|", "|"), row
    for doc in field_docs(schema.RunConfig):
        assert f"`{doc.name}`" in text or f"`{doc.name}." in text, doc.name


def test_config_page_has_every_choice():
    from core.config import presets

    rows = {line.split("|")[1].strip(" `"): line for line in TEXTS["docs/config.md"].splitlines()
            if line.startswith("| `")}  # fmt: skip
    registry = Registry.load()
    offered = {group: set(names) for group, names in presets.registered(registry).items()}
    for preset in presets.all_presets(registry):
        offered.setdefault(preset.group, set()).add(preset.name)
    for group, names in offered.items():
        for name in names:
            assert f"`{name}`" in rows[group], f"{group}={name}"


# 5. The run directory.


def written_names() -> set[str]:
    """Names that core writes into a run folder: literals after `run.folder /` and their like."""
    pattern = re.compile(r"(?:\brun\.folder|\bself\._folder|\brun_dir|\bpath\.run_dir) / \"([\w./-]+)\"")
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "core").rglob("*.py")]
    return {name for text in texts for name in pattern.findall(text)} | {METRICS_FILE, SAMPLES_FILE}


def test_every_file_of_a_run_is_documented():
    names = written_names()
    assert {"plan.json", "artifact", "checkpoints", "report.html", "log.txt"} <= names
    for name in names:
        assert f"`{name}`" in TEXTS["docs/run-directory.md"] or f"`{name}/`" in TEXTS["docs/run-directory.md"], name


FIELDS = [
    ("core/artifacts/artifact.py", "seal"), ("core/training/evaluate.py", "headline"), ("core/jsonl.py", "metrics"),
    ("core/jsonl.py", "samples"),
]  # fmt: skip
"""Functions whose dictionaries are what the JSON files hold."""
NOT_FIELDS = {"pairs", "prompts", "preference", "float32", "heldout_loss", "score"}
"""Keys of lookup tables in the same functions."""


@pytest.mark.parametrize(("file", "function"), FIELDS)
def test_every_field_of_the_json_files_is_documented(file, function):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    node = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function)
    keys = {key.value for child in ast.walk(node) if isinstance(child, ast.Dict) for key in child.keys
            if isinstance(key, ast.Constant)}  # fmt: skip
    assert keys, f"{function} has no dictionary any more"
    for key in sorted(keys - NOT_FIELDS):
        assert f"`{key}`" in TEXTS["docs/run-directory.md"], key


def section(name):
    """The part of the page on run folders that is about one file."""
    return TEXTS["docs/run-directory.md"].partition(f"## `{name}`")[2].partition("\n## ")[0]


def rows_of(name):
    """First cell to line of the table of one file's fields."""
    lines = [line for line in section(name).splitlines() if line.startswith("| `")]
    return {field: line for line in lines for field in re.findall(r"`(\w+)`", line.split(" | ")[0])}


def test_every_field_of_a_result_is_documented():
    rows = rows_of("result.json")
    assert StageResult(stage="sft", heldout_loss_by_source={"a": {}}).to_json().keys() <= rows.keys()
    for name, kind in (("metrics", MetricChange), ("retention", Retained), ("pipeline", ChainStep)):
        for field in fields(kind):
            assert f"`{field.name}`" in rows[name], (name, field.name)


def test_every_field_of_a_plan_is_documented():
    part = PartInfo(1, 1, 1, 1, "a", {"a": "b"}, ["c"], ["d"])
    data = DatasetInfo(part, part, mixture={"a": SourceInfo(part=part)}, transforms=[TransformReport()])
    preview = StagePreview(total_steps=1, memory_gb_estimate=1.0, trained_rows=[TrainedRow()])
    plan = PlanRecord(data=data, preview=preview, stages=[StageEntry()]).to_json()
    rows = rows_of("plan.json")
    assert plan.keys() <= rows.keys()
    told = {name: plan[name] for name in ("owner", "model", "batch", "data")}
    told |= {"stages": plan["stages"][0], "trained_rows": plan["trained_rows"][0]}
    for name, values in told.items():
        for field in values:
            assert f"`{field}`" in rows[name], (name, field)
    inner = [plan["data"]["train"], plan["data"]["mixture"]["a"], plan["data"]["transforms"][0]]
    for field in {field for values in inner for field in values}:
        assert f"`{field}`" in rows["data"], field


def test_core_table_names_every_folder_and_file():
    table = TEXTS["README.md"].partition("## Core, folder by folder")[2]
    for path in (ROOT / "core").iterdir():
        if path.name.startswith("__") and path.name != "__main__.py":
            continue
        assert f"`core/{path.name}{'/' if path.is_dir() else ''}`" in table, path.name
