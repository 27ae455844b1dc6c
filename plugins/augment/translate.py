"""The command `back-translate`: texts of records, translated there and back by a model. Loads torch when it starts.

Edunov et al. 2018, arXiv:1808.09381, train translators on such texts; Yu et al. 2018, arXiv:1804.09541, paraphrase
training questions by them, which is what is done here, with a model that follows instructions as both translators.
"""

from __future__ import annotations

import json
import random
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.api import CommandParser, ConfigError, Message, Record, Rollout, Sampling, require
from plugins.augment.faults import fault
from plugins.augment.parts import PARTS, part_of

if TYPE_CHECKING:
    from core.torch_api import StageRun

FORWARD = "Translate the text below into {pivot}. Write the translation and nothing else.\n\n{text}"
BACK = "Translate the {pivot} text below into {language}. Write the translation and nothing else.\n\n{text}"

MAKING = (
    "of", "pivot", "language", "copies", "share", "forward", "back", "temperature", "top_p", "max_new_tokens",
    "max_ratio",
)  # fmt: skip
"""Flags that the translations depend on."""
VERSION = 1
"""Raised when the same flags give other rows."""


class SourceText(NamedTuple):
    """A text that is translated, and the first record that it stands in."""

    text: str
    record: Record


class Answer(NamedTuple):
    """What the model wrote, or why that cannot be used."""

    text: str
    fault: str = ""


def flags(arguments: list[str]) -> tuple[Namespace, list[str]]:
    """The command's flags and the settings of the run. Raises: ConfigError for those that cannot work."""
    parser = CommandParser("back-translate")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--of", choices=PARTS, default="prompt")
    parser.add_argument("--pivot", default="French", metavar="LANGUAGE")
    parser.add_argument("--language", default="English", metavar="LANGUAGE")
    parser.add_argument("--copies", type=int, default=1, metavar="N")
    parser.add_argument("--share", type=float, default=1.0, metavar="FRACTION")
    parser.add_argument("--forward", default=FORWARD, metavar="TEXT")
    parser.add_argument("--back", default=BACK, metavar="TEXT")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--max-ratio", type=float, default=2.0, metavar="X")
    parser.add_argument("--batch", type=int, default=32, metavar="N")
    asked, settings = parser.parse_with_settings(arguments)
    require(asked.out.suffix == ".jsonl", "--out", "a file that ends in .jsonl", str(asked.out))
    require(asked.copies > 0, "--copies", "> 0", asked.copies)
    require(0 < asked.share <= 1, "--share", "in (0, 1]", asked.share)
    require(asked.temperature >= 0, "--temperature", ">= 0", asked.temperature)
    require(0 < asked.top_p <= 1, "--top-p", "in (0, 1]", asked.top_p)
    require(asked.max_new_tokens > 0, "--max-new-tokens", "> 0", asked.max_new_tokens)
    require(asked.max_ratio >= 1, "--max-ratio", ">= 1", asked.max_ratio)
    require(asked.batch > 0, "--batch", "> 0", asked.batch)
    for name in ("forward", "back"):
        require("{text}" in getattr(asked, name), f"--{name}", "a text with {text}", getattr(asked, name))
    if asked.copies > 1 and asked.temperature == 0:
        raise ConfigError(f"--copies is {asked.copies}, but greedy translations are all alike",
                          mend="add --temperature 0.7, or leave --copies out")  # fmt: skip
    return asked, settings


def command(arguments: list[str]) -> int:
    """Translate, write the file and its lineage beside it. The exit code."""
    asked, settings = flags(arguments)
    from core.torch_api import build_rows, sampling_run, save_rows, write_text

    with sampling_run("back-translate", settings) as run:
        sources = texts_to_translate(run, asked)
        making = {"command": "back-translate", "version": VERSION, **{name: getattr(asked, name) for name in MAKING}}
        built = build_rows(run, sources, partial(translated, run, asked), making, asked.batch)
        rows = [row for item in built for row in item["rows"]]
        refused = Counter(row["refused"] for row in rows if row["refused"])
        info = run.plan.dataset.info
        lineage = {
            "version": VERSION,
            "model": {"source": run.cfg.model.source, "fingerprint": run.plan.fingerprint},
            "engine": run.plan.engine.name if run.plan.engine else "",
            "seed": run.cfg.runtime.seed,
            "records": {"count": info.train.records, "quarantined": info.quarantined,
                        "fingerprint": info.fingerprint},
            "settings": making,
            "texts": len(sources),
            "translations": len(rows),
            "taken": len(rows) - refused.total(),
            "refused": dict(refused.most_common()),
        }  # fmt: skip
        # The lineage first: a file of translations never stands without it.
        write_text(asked.out.with_suffix(".lineage.json"), json.dumps(lineage, indent=2, ensure_ascii=False) + "\n")
        save_rows(asked.out.parent, asked.out.stem, rows)
        why = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
        run.log.say(f"{lineage['taken']} of {len(rows)} translations are taken" + (f"; refused: {why}" if why else ""))
        run.log.say(
            f"written: {asked.out}; train with data.transforms=[{{name: augment_translated, file: {asked.out}}}]"
        )
    return 0


def texts_to_translate(run: StageRun, asked: Namespace) -> list[SourceText]:
    """Distinct texts of the training records, those of the share that is drawn by seed and text.

    Raises: ConfigError where no record has such a text, or none was drawn.
    """
    found: dict[str, SourceText] = {}
    for record in run.plan.dataset.train:
        text = part_of(record, asked.of)
        if text and text.strip():
            found.setdefault(text, SourceText(text, record))
    seed = run.seed_for("share")
    drawn = [source for source in found.values() if random.Random(f"{seed}:{source.text}").random() < asked.share]
    if not found:
        mend = f"choose another part with --of {'|'.join(PARTS)}, or read raw text with a stage that takes it"
        raise ConfigError(f"no record has a {asked.of} to translate", "--of", mend)
    if not drawn:
        raise ConfigError(f"none of {len(found)} texts was drawn with --share {asked.share}", "--share", "raise it")
    return drawn


def translated(run: StageRun, asked: Namespace, sources: Sequence[SourceText]) -> list[dict[str, Any]]:
    """For each text an object with `rows`, one for each copy; see docs/building-sets.md for their fields."""
    texts = [source.text for source in sources]
    forward = _answers(run, asked, asked.forward, texts, asked.copies)
    usable = [answer.text for answers in forward for answer in answers if not answer.fault]
    back = iter(_answers(run, asked, asked.back, usable, 1))
    made = []
    for source, answers in zip(sources, forward, strict=True):
        rows: list[dict[str, Any]] = []
        for answer in answers:
            new = answer if answer.fault else next(back)[0]
            why = new.fault or fault(source.text, answer.text, new.text, asked.max_ratio)
            if not why and any(row["text"] == new.text for row in rows):
                why = "repeated"
            meta = source.record.meta
            rows.append(
                {
                    "of": asked.of,
                    "original": source.text,
                    "text": "" if answer.fault else new.text,
                    "refused": why,
                    "pivot": asked.pivot,
                    "in_pivot": answer.text,
                    "model": run.cfg.model.source,
                    "file": str(meta.get("file", "")),
                    "line": meta.get("line", 0),
                }
            )
        made.append({"rows": rows})
    return made


def _answers(run: StageRun, asked: Namespace, template: str, texts: Sequence[str], count: int) -> list[list[Answer]]:
    """`count` answers to the template filled with each text; one that says so where a text leaves no room."""
    if not texts:
        return []
    requests = [(Message("user", _filled(template, asked, text)),) for text in texts]
    prompts = run.codec.prompts(requests)
    fits = [len(prompt) + asked.max_new_tokens <= run.start.max_length for prompt in prompts]
    room = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
    sampling = Sampling(
        max_new_tokens=asked.max_new_tokens, temperature=asked.temperature, top_p=asked.top_p, n=count,
        seed=run.seed_for("back-translate", template, texts[0]), stop_token_ids=run.codec.ends,
    )  # fmt: skip
    rollouts = iter(run.parts.engine().generate(room, sampling) if room else [])
    return [[_answer(run, next(rollouts)) for _ in range(count)] if fit else [Answer("", "too long")] for fit in fits]


def _filled(template: str, asked: Namespace, text: str) -> str:
    """In one pass, so that a text which holds "{pivot}" stays as it is."""
    values = {"{text}": text, "{pivot}": asked.pivot, "{language}": asked.language}
    return re.sub(r"\{(text|pivot|language)\}", lambda found: values[found[0]], template)


def _answer(run: StageRun, rollout: Rollout) -> Answer:
    said = run.codec.said(rollout.completion_ids)
    text = said.answer.strip()
    special = set(run.codec.tokenizer.all_special_ids)
    if not rollout.finished:
        return Answer(text, "cut off")
    if not text:
        return Answer(text, "empty")
    return Answer(text, "template remnant" if special.intersection(rollout.completion_ids[said.answer_at : -1]) else "")
