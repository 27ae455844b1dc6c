"""The page of the public API, docs/api.md, written from the code. Making it imports the public modules, torch too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from core.commands.api_entries import EXTENDED, MODULES, Definition, Entry, entries, one_line
from core.settings.fields import Written

HEAD = f"""# Public API

Written by `python -m core reference --api` from the code and its docstrings; change it there. All that plugins may
import, from {" and ".join(f"`{module}`" for module in MODULES)}; and what a stage may build on of the built-in ones,
under the names of their modules. What these names are for tell [plugins.md](plugins.md), [tutorial.md](tutorial.md) and
[stages.md](stages.md).

A capital letter at the end of a name is a dimension of a tensor: T tokens of a packed row, M completion tokens,
C completions, B pairs, V the vocabulary, d the width of a hidden state.
"""

GROUPS = {
    "Plugins and versions": "hookimpl PROJECT API_VERSION",
    "What a plugin registers":
        "StageSpec RewardSpec EngineSpec OptimizerSpec PeftMethodSpec MetricSpec TrackerSpec DataSourceSpec "
        "TransformSpec ReaderSpec DialectSpec TextSetSpec CommandSpec",
    "Settings":
        "StageConfig RewardConfig RolloutConfig OptimizerConfig PeftConfig MetricConfig TrackerConfig TransformConfig "
        "Schedule number require check_regex",
    "A stage and its loop":
        "Stage StageRun StageData Batch LossOutput Limit Evaluation Work Fitted Recorder RunLog Checkpoints Parts "
        "step_items split_by_tokens",
    "What everyone sees of a run": "Run PlanView PlannedStage StageResult MetricChange Retained ChainStep Stop",
    "Records and data":
        "Record Message Span Step Row RowError to_messages to_text find_files TransformContext Transformed TextPart "
        "texts_of text_of words_of",
    "Tokens and examples":
        "ChatCodec load_codec ExampleMaker Supervision TrainOn TooLong Demonstration check_trained Pair Prompt "
        "encoded_prompts heldout_prompts render_bounded heatmap",
    "Loading and calling models":
        "Start Models TokenModel ScoreModel models_for_roles trainable_policy frozen_policy trainable_scorer "
        "load_module is_prompt_learning export_model Guest plain_body",
    "Packed rows and losses":
        "Packed PromptGroup pack pack_texts PairRow pair_rows linear_logprobs logits_logprobs sum_by_completion",
    "Drawing completions": "Sampling Rollout RolloutEngine build_rows save_rows sampling_run",
    "Scoring":
        "Score ScoreRequest Scorer ScorerContext GuardedScorer summarise score_heldout score_request encoded_again "
        "shown",
    "Reports, files and commands":
        "Section html_table markdown_table read_rows write_text atomic_folder disk_guard CommandParser",
    "Errors": "PreftuneError ConfigError DataError ModelError TrainingError ArtifactError PluginError TemplateLimit",
}  # fmt: skip
"""Heading to core's public names under it, in order. A name that stands nowhere comes under OTHERS. A module of a
built-in stage is a heading of its own, as its `__all__` orders it."""
OTHERS = "More"
INTRODUCTIONS = {
    "What a plugin registers":
        "In each of these `name` is what the user types, `config` the dataclass of its settings, `impl` the import "
        "path of its code, which is imported only when it was chosen, `summary` a line for `--help`, and `requires` "
        "import names that are looked for before anything heavy is loaded.",
    "Settings": "Bases for dataclasses of settings, and rules that `__post_init__` can hold them to.",
}  # fmt: skip


def page() -> str:
    """The Markdown text."""
    found = {entry.name: entry for entry in entries()}
    groups = {title: [name for name in names.split() if name in found] for title, names in GROUPS.items()}
    extended = {module: [name for name in found if found[name].module == module] for module in EXTENDED}
    groups |= {f"`{module}`": names for module, names in extended.items()}
    placed = {name for names in groups.values() for name in names}
    groups[OTHERS] = [name for name in found if name not in placed]
    groups = {title: names for title, names in groups.items() if names}
    links = {title: " · ".join(f"[{name}](#{name.lower()})" for name in names) for title, names in groups.items()}
    blocks = [HEAD, "\n".join(f"- **{title}**: {line}" for title, line in links.items()) + "\n"]
    for title, names in groups.items():
        blocks.append(f"## {title}\n")
        if title in INTRODUCTIONS:
            blocks.append(INTRODUCTIONS[title] + "\n")
        for name in names:
            blocks += _entry(found[name], found)
    return "\n".join(blocks)


def _entry(entry: Entry, public: Iterable[str]) -> Iterator[str]:
    yield f"### {entry.name}\n"
    bases = [f"[{base}](#{base.lower()})" if base in public else f"`{base}`" for base in entry.extends]
    extends = f", extends {' and '.join(bases)}" if bases else ""
    yield f"{entry.kind[0].upper()}{entry.kind[1:]} of `{entry.module}`{extends}.\n"
    if not entry.signature.startswith("class "):
        yield f"```\n{entry.signature}\n```\n"
    blocks = _blocks(entry.doc)
    fields = dict(entry.fields)
    for block in [block for block in blocks if block.names and fields.keys() >= set(block.names)]:
        blocks.remove(block)  # what the docstring of a class says of its fields stands beside them
        said = block.text[:1].upper() + block.text[1:]
        fields |= {name: replace(fields[name], doc=fields[name].doc or said) for name in block.names}
    if blocks:
        yield _markdown(blocks) + "\n"
    if fields:
        yield _table(fields, _TITLES.get(entry.kind, ("attribute", "value"))) + "\n"
    if entry.methods:
        yield "\n".join(map(_method, entry.methods)) + "\n"


_TITLES = {"enumeration": ("member", "value"), "module": ("constant", "value")} | dict.fromkeys(
    ("dataclass", "frozen dataclass", "named tuple"), ("field", "default")
)
"""Heads of the columns of names and of values, by kind."""


def _table(fields: dict[str, Written], titles: tuple[str, str]) -> str:
    """The fields; a column in which nothing stands is left out."""
    columns = [
        (titles[0], [f"`{name}`" for name in fields]),
        ("type", [_code(item.type) for item in fields.values()]),
        (titles[1], [_code(item.value) for item in fields.values()]),
        ("what", [_escaped(item.doc) for item in fields.values()]),
    ]
    shown = [(head, cells) for head, cells in columns if any(cells)]
    rows = [[head for head, _ in shown], ["---"] * len(shown), *zip(*(cells for _, cells in shown), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _method(method: Definition) -> str:
    said = "" if method.kind in ("method", "function") else f" ({method.kind})"
    text = _markdown(_blocks(method.doc)).replace("\n", "\n  ").replace("\n  \n", "\n\n")
    return f"- {_code(one_line(method.signature))}{said}: {text}"


# -- docstrings --------------------------------------------------------------------------------------------------------


@dataclass
class Block:
    """A paragraph of a docstring, or what it says of the arguments or fields `names`."""

    text: str
    names: tuple[str, ...] = ()


_ITEM = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): +(.*)")


def _blocks(doc: str) -> list[Block]:
    """The parts of a docstring, each on one line.

    After the first paragraph's first line, a line `name: text` opens an item. It goes on in indented lines, and in
    others until a sentence ends. `Raises: …` is a paragraph of its own.
    """
    blocks: list[Block] = []
    fresh = True
    for line in doc.splitlines():
        text = line.strip()
        item = _ITEM.fullmatch(line) if blocks else None
        ended = fresh or (bool(blocks) and blocks[-1].text.endswith((".", ":")))
        if not text:
            fresh = True
            continue
        if item and (ended or blocks[-1].names):
            blocks.append(Block(item[2], tuple(item[1].split(", "))))
        elif fresh or (ended and line == text and (blocks[-1].names or text.startswith("Raises: "))):
            blocks.append(Block(text))
        else:
            blocks[-1].text += f" {text}"
        fresh = False
    return blocks


def _markdown(blocks: list[Block]) -> str:
    """Paragraphs, and lists of items."""
    found = ""
    for before, block in zip([None, *blocks], blocks, strict=False):
        names = ", ".join(f"`{name}`" for name in block.names)
        gap = "" if before is None else "\n" if before.names and names else "\n\n"
        found += gap + (f"- {names}: " if names else "") + _escaped(block.text)
    return found


def _escaped(text: str) -> str:
    """Prose without marks of its own; what stands between backticks is left as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts)
