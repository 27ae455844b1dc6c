"""Command lines drawn at random, put through the check that every run begins with. What must hold of each:

1. It is accepted, or refused with a PreftuneError of exit code 2; nothing else is raised, and neither takes long.
2. A refusal names a key or a word that was typed, and says how to mend it, in at most a screen of text.
3. It never proposes what was typed.
4. A misspelt key is never accepted, nor a value of another type, nor a choice that there is not.
5. An accepted number is the typed one, finite and in its range; an accepted name is that of the chosen part.
6. An accepted config can be written as JSON and UTF-8, and holds no password and no token.
7. A refusal does not tell a password either.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import signal
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

import pytest

from core.config import compose
from core.config.check import resolved
from core.config.explain import explain
from core.config.overrides import rewrite
from core.config.typed import accept
from core.errors import PreftuneError
from core.platform.kinds import KINDS
from core.platform.registry import Registry
from core.secrets import without_secrets
from core.settings.convert import to_plain
from core.settings.ranges import inner_type, ranges
from core.settings.schema import RunConfig

LONGEST_S = 20
PASSWORD = "hunter2hunter2"
ADDRESS = f"https://me:{PASSWORD}@host/v1"
ODD = [
    "", "null", "[]", "{}", "[1,2]", "{a: 1}", "true", "no", "'", '"', "''", '"a', "a,b", "a b", "${x}", "${stage.lr}",
    "$", "=", "a=b", "-1", "1e999", "nan", "inf", "-inf", ".nan", "0x10", "1_000", "\u0663", "½", "é", "😀", "\u202e",
    "\ud800", "%s", "{}{key}", "a\nb", "a\tb", "\\", "/", "/dev/null/x", "~", "~nobody-here/x", "..", "*", "???",
    "9" * 400, "9" * 5000, "x" * 5000, "[" * 200, "(" * 50, "[nan]", "{a: inf}", ADDRESS, f"'{ADDRESS}'",
    "sk-" + PASSWORD * 3, "<script>", "!!python/x", "int(x)", "range(1,3)", "choice(1,2)", "glob(*)", "1..3", "@", "&a",
    "#c", "a#b", ": ", "- a", "None", "True", "0", "1",
]  # fmt: skip
"""Values that fit nowhere, or somewhere else."""
GROUPS = [group for kind in KINDS for group in kind.groups]
GROUPS += ["stage", "algorithm", "model", "data", "experiment", "pipeline"]
FREE = re.compile(r"options|columns|role_weights|mixture|study\.|upstream|metrics|transforms|members|^~|^hydra")
"""Keys below which any key may stand."""


@dataclass(frozen=True)
class Word:
    """One drawn override: `key=value`, and what is known of it."""

    text: str
    key: str
    kind: str
    """`number`, `misspelt`, `wrong type`, `choice`, or `any` for one that may be right or wrong."""
    number: float | None = None


class Draw:
    """Draws command lines."""

    def __init__(self, registry: Registry, seed: int) -> None:
        self.registry, self.random = registry, random.Random(seed)

    def line(self) -> list[Word]:
        """A stage, a model, and one to four further words."""
        stage, algorithm = self.random.choice(sorted(self.registry.stages))
        self.config = self.registry.stages[stage, algorithm].spec.config
        words = [Word(f"stage={stage}", "stage", "any")]
        words += [Word(f"algorithm={algorithm}", "algorithm", "any")] if algorithm else []
        words += [Word("model.source=x", "model.source", "any")]
        self.parts: dict[str, type] = {"stage": self.config}
        for _ in range(self.random.randint(1, 4)):
            words.append(self.random.choice([self.setting, self.setting, self.setting, self.misspelt, self.choice])())
        self.random.shuffle(words)
        return words

    def choice(self) -> Word:
        """A group and a name, that there is or is not."""
        group = self.random.choice(GROUPS)
        kind = next((kind for kind in KINDS if group in kind.groups), None)
        names = sorted(map(str, self.registry.table(kind))) if kind else ["sft", "dpo", "demo", "none", "quick"]
        name = self.random.choice([*names, self.spoilt(self.random.choice(names)), self.random.choice(ODD)])
        if kind and name in names and kind.base:
            self.parts[group] = self.registry.table(kind)[name].spec.config
        suffix = self.random.choice(["", "", "", ".name", "@x", ".", "/"])
        return Word(f"{self.random.choice(['', '', '', '+', '++', '~'])}{group}{suffix}={name}", group, "any")

    def setting(self) -> Word:
        """A setting that there is, with a value of its type or not."""
        key, hint = self.random.choice(list(self.keys()))
        prefix = self.random.choice(["", "", "", "", "", "++"])
        if inner_type(hint) in (int, float) and hint is inner_type(hint) and self.random.random() < 0.8:
            value = self.number(inner_type(hint))
            return Word(f"{prefix}{key}={value!r}", key, "number", value)
        value, kind = self.value(hint)
        return Word(f"{prefix}{key}={value}", key, kind)

    def keys(self) -> Iterator[tuple[str, Any]]:
        """Every setting of the run and of the chosen parts, with its type."""
        for part, config in (*self.parts.items(), ("upstream.reward", self.registry.stages["reward", ""].spec.config)):
            yield from keys_of(config, part)
        yield from keys_of(RunConfig, "")

    def number(self, kind: type) -> float:
        """A number: usual, at an edge, or beyond any."""
        wide = [0, 1, -1, 2, 3, 10, 100, 10**4, 10**6, 10**9, 10**12, 2**31, 2**32, 2**63, 10**30, -(10**9)]
        if kind is int:
            return self.random.choice([*wide, self.random.randint(-5, 5000)])
        more = [0.5, 1e-9, 1e-300, 1e38, 1e39, 1e300, float("inf"), float("nan"), -0.0, 0.999999, 1.000001, -1e-9]
        return float(self.random.choice([*wide, *more, self.random.uniform(-2, 2)]))

    def value(self, hint: Any) -> tuple[str, str]:
        """(a value as text, whether it is surely of another type)."""
        inner = inner_type(hint)
        if isinstance(inner, type) and issubclass(inner, Enum) and self.random.random() < 0.6:
            return self.random.choice([*(str(member.value) for member in inner), "nope", self.spoilt("auto")]), "any"
        if inner in (int, float, bool) and hint is inner and self.random.random() < 0.6:
            return self.random.choice(["word", "[1,2]", "{a: 1}", "12x", "'two words'", "null"]), "wrong type"
        if inner is str and self.random.random() < 0.4:
            return self.random.choice(["word", "a/b", "'two words'", "file.jsonl", "7", "true"]), "any"
        return self.random.choice(ODD), "any"

    def misspelt(self) -> Word:
        """A key that there is not."""
        keys = [key for key, _ in self.keys()]
        key = self.random.choice(keys)
        wrong = self.random.choice([
            self.spoilt(key), key.rpartition(".")[2], f"{key}.{key.rpartition('.')[2]}", f"run.{key}", key.upper(),
            f"{key}x", key.replace("_", "-") if "_" in key else f"-{key}",
        ])  # fmt: skip
        free = re.search(
            r"options|columns|role_weights|mixture|study\.|upstream|metrics|transforms|members|^~|^hydra", wrong
        )
        known = wrong in keys or wrong in {*GROUPS, "peft"} or any(one.startswith(f"{wrong}.") for one in keys)
        sign = self.random.choice(["", "", "", "+", "++"])
        return Word(
            f"{sign}{wrong}={self.random.choice(['1', 'x', 'null', *ODD])}",
            wrong,
            "any" if free or known else "misspelt",
        )

    def spoilt(self, text: str) -> str:
        """The text with one mistake in it."""
        place = self.random.randrange(len(text)) if text else 0
        letter = self.random.choice(string.ascii_lowercase + "_.é")
        return self.random.choice([text[:place] + text[place + 1 :], text[:place] + letter + text[place:],
                                   text[:place] + letter + text[place + 1 :]])  # fmt: skip


def keys_of(config: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """(key, type) of every setting of a class, those of nested ones too."""
    hints = get_type_hints(config)
    for item in dataclasses.fields(config):
        hint, key = hints[item.name], f"{prefix}.{item.name}" if prefix else item.name
        if dataclasses.is_dataclass(hint):
            yield from keys_of(hint, key)
        elif hint is not Any and key not in ("stage", "upstream"):
            yield (
                key,
                next((one for one in get_args(hint) if one is not type(None)), hint)
                if type(None) in get_args(hint)
                else hint,
            )


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"the check took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(words: list[str], registry: Registry) -> tuple[RunConfig, dict[str, Any]] | PreftuneError:
    """The accepted config, typed and as JSON values, or the refusal."""
    try:
        try:
            cfg = compose.without_hydra(compose.compose(rewrite(words, registry)))
        except PreftuneError:
            raise
        except Exception as error:
            explained = explain(error, registry)
            if explained is None:
                raise
            raise explained from error
        return accept(cfg, registry), resolved(cfg)
    except PreftuneError as error:
        return error


def faults_of(words: list[Word], registry: Registry) -> Iterator[str]:
    """What is wrong with how a command line is answered; see the rules above."""
    with no_longer_than(LONGEST_S):
        found = outcome([word.text for word in words], registry)
    drawn = [word for word in words if word.text != "model.source=x"]
    if isinstance(found, PreftuneError):
        text = str(found)
        if found.exit_code != 2:
            yield f"exit code {found.exit_code}"
        if not found.mend.strip():
            yield "a refusal without a way to mend it"
        if len(text) > 8000:
            yield f"a message of {len(text)} characters"
        if PASSWORD in without_secrets(text):
            yield "a password is told"
        typed = {
            part
            for word in drawn
            for part in (*re.split(r"[.=@/]", word.text.lstrip("+~")), word.key, word.text)
            if part
        }
        if not any(one[:80] in text for one in typed):
            yield "the message names nothing that was typed"
        for offered in re.findall(r"[Dd]id you mean ('[^']*'(?: or '[^']*')*)", text):
            for one in re.findall(r"'([^']*)'", offered):
                if any(one == word.key and f"'{one}'" in found.what.partition(". Did")[0] for word in drawn):
                    yield f"what was typed is proposed: {one}"
        return
    cfg, plain = found
    try:
        written = json.dumps([to_plain(cfg), plain], allow_nan=False, ensure_ascii=False).encode()
        if PASSWORD.encode() in written:
            yield "a password is accepted"
    except (ValueError, TypeError) as error:
        yield f"an accepted config cannot be written: {error}"
    for word in drawn:
        if word.kind in ("misspelt", "wrong type") and not word.text.endswith("=null"):
            yield f"accepted although it is {word.kind}: {word.text}"
        if word.kind == "number" and sum(other.key == word.key for other in drawn) == 1:
            yield from _number_faults(word, cfg)


def _number_faults(word: Word, cfg: RunConfig) -> Iterator[str]:
    *path, name = word.key.split(".")
    holder: Any = cfg
    for part in path:
        holder = holder.get(part) if isinstance(holder, dict) else getattr(holder, part, None)
    if holder is None or not hasattr(holder, name):
        return
    value = getattr(holder, name)
    if value != word.number:
        yield f"{word.text} was accepted as {value!r}"
    if not ranges(type(holder))[name].holds(value):
        yield f"{word.text} is out of range and was accepted"


def run_sets(count: int, seed: int) -> None:
    """Draw and try `count` command lines; fail with all that broke a rule."""
    registry = Registry.load()
    compose.install(registry)
    draw, broken = Draw(registry, seed), []
    accepted = 0
    for number in range(count):
        words = draw.line()
        line = " ".join(ascii(word.text)[:160] for word in words)
        try:
            faults = list(faults_of(words, registry))
            accepted += not faults
        except Exception as error:  # a traceback is a fault like any other
            faults = [f"{type(error).__name__}: {str(error)[:200]}"]
        broken += [f"{number}: {fault}\n      {line}" for fault in faults]
    assert not broken, f"{len(broken)} faults in {count} sets:\n" + "\n".join(broken[:60])


@pytest.mark.slow
def test_300_command_lines():
    run_sets(300, seed=11)


@pytest.mark.long
def test_5000_command_lines():
    run_sets(5000, seed=12)
