"""Several phrasings of one task, drawn for each record (FLAN; PromptSource, Bach et al. 2022, arXiv:2202.01279).

A file is YAML in PromptSource's layout: `templates` holds entries with `name`, `jinja` (a prompt, `|||`, a
completion), optional `answer_choices` (options joined by `|||`) and `metadata.choices_in_prompt`. Its `!` tags are
read as plain mappings and nothing is built from them; Jinja runs in its sandbox.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.api import ConfigError, Message, Record, TemplateLimit, render_bounded

BUILTIN = Path(__file__).with_name("phrasings.yaml")
_SEPARATOR = "|||"


class _PlainLoader(yaml.SafeLoader):
    """YAML's safe loader, to which a mapping with an unknown tag is a mapping."""


def _untagged(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag} is not allowed here", node.start_mark)


_PlainLoader.add_multi_constructor("!", _untagged)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    environment.globals["zip"] = zip
    return environment


_JINJA = _environment()


@dataclass(frozen=True)
class Phrasing:
    """One template. `shows_options`: the prompt lists the answer options; `where`: it comes from, for messages."""

    name: str
    jinja: str
    answer_choices: str | None = None
    shows_options: bool = False
    where: str = "stage.templates"

    @cached_property
    def _compiled(self) -> tuple[Any, Any]:
        return _JINJA.from_string(self.jinja), _JINJA.from_string(self.answer_choices or "")

    def render(self, variables: Mapping[str, Any]) -> tuple[str, str] | None:
        """Prompt and completion; None where the template does not fit the variables.

        Raises: ConfigError for a template that is stopped: it would hang, or take all memory.
        """
        text, choices = self._compiled
        try:
            known = dict(variables)
            if self.answer_choices is not None:
                listed = render_bounded(lambda: choices.render(known), self.answer_choices)
                known["answer_choices"] = [part.strip() for part in listed.split(_SEPARATOR)]
            parts = render_bounded(lambda: text.render(known), self.jinja).split(_SEPARATOR)
        except TemplateLimit as error:
            raise ConfigError(f"the template '{self.name}' {error}", self.where, "correct the template") from None
        except (TemplateError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError):
            return None
        prompt, completion = (parts[0].strip(), parts[1].strip()) if len(parts) == 2 else ("", "")
        return (prompt, completion) if prompt and completion else None


@dataclass(frozen=True)
class Phrasebook:
    """Phrasings to draw from."""

    phrasings: tuple[Phrasing, ...]

    @classmethod
    def read(cls, names: Sequence[str]) -> Phrasebook:
        """Phrasings of several files, or of `builtin`.

        Raises: ConfigError for a file that is missing or not in the layout.
        """
        return cls(tuple(one for name in names for one in _read(BUILTIN if name == "builtin" else Path(name))))

    def variables(self, record: Record, columns: Mapping[str, str]) -> dict[str, Any]:
        """What templates may name: fields of the record, the same under their columns' names, the other columns."""
        asked = [message.content for message in record.prompt if message.role == "user"]
        known: dict[str, Any] = {
            "prompt": asked[-1] if asked else "",
            "completion": record.completion or record.chosen,
            "answer": record.answer,
            "rationale": record.rationale,
            "score": record.score,
            "label": record.label,
        }
        known = {name: value for name, value in known.items() if value not in (None, "")}
        known |= {column: known[name] for name, column in columns.items() if name in known}
        return {**known, **record.meta.get("extra", {})}

    def phrase(self, record: Record, seed: int, options_frac: float, columns: Mapping[str, str]) -> Record:
        """The record in a phrasing that depends on `seed` and the record alone; as it is where none fits.

        A phrasing that shows the options is drawn with `options_frac`, where both kinds fit. Dialogues of several
        turns, pairs and tool calls stay as they are.
        """
        spoken = [message for message in record.prompt if message.role != "system"]
        if len(spoken) != 1 or record.completion is None or record.calls:
            return record
        draw = random.Random(f"{seed}:{record.key}")
        shows = draw.random() < options_frac
        order = list(self.phrasings)
        draw.shuffle(order)
        order.sort(key=lambda phrasing: phrasing.shows_options is not shows)
        variables = self.variables(record, columns)
        for phrasing in order:
            rendered = phrasing.render(variables)
            if rendered is None:
                continue
            kept = tuple(message for message in record.prompt if message.role == "system")
            return replace(
                record,
                prompt=(*kept, Message("user", rendered[0])),
                completion=rendered[1],
                meta={**record.meta, "phrasing": phrasing.name},
            )
        return record


def columns_of(mapping: Mapping[str, Any] | None) -> dict[str, str]:
    """Canonical field to column, from the mapping of the training part; empty where the files differ."""
    return {name: column for name, column in (mapping or {}).items() if isinstance(column, str)}


def _read(path: Path) -> list[Phrasing]:
    where = f"stage.templates, {path}"
    try:
        # A subclass of the safe loader: no object is built, whatever the tags say.
        content = yaml.load(path.expanduser().read_text(encoding="utf-8"), Loader=_PlainLoader)
    except OSError as error:
        raise ConfigError(f"the templates cannot be read: {error}", where, "name a YAML file, or `builtin`") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"the templates are not plain YAML: {error}", where, "correct the file") from error
    entries = content.get("templates") if isinstance(content, dict) else None
    if isinstance(entries, dict):
        entries = list(entries.values())
    if not isinstance(entries, list) or not entries:
        raise ConfigError("the file holds no `templates`", where, "see docs/training-tokens.md for the layout")
    return [_phrasing(entry, number, where) for number, entry in enumerate(entries, 1)]


def _phrasing(entry: Any, number: int, where: str) -> Phrasing:
    if not isinstance(entry, dict) or not isinstance(entry.get("jinja"), str):
        raise ConfigError(
            f"template {number} has no text under `jinja`", where, "see docs/training-tokens.md for the layout"
        )
    name = str(entry.get("name") or number)
    choices, metadata = entry.get("answer_choices"), entry.get("metadata")
    try:
        _JINJA.parse(entry["jinja"])
        _JINJA.parse(str(choices or ""))
    except TemplateError as error:
        raise ConfigError(f"the template '{name}' is not Jinja: {error}", where, "correct the template") from error
    shows = bool(metadata.get("choices_in_prompt")) if isinstance(metadata, dict) else False
    return Phrasing(name, entry["jinja"], str(choices) if choices else None, shows, where)
