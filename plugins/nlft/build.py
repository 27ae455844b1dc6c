"""What records do not bring: the model's own answers, whether they are right, and why not. Torch-free.

Work is done in blocks, and each finished answer is a line of `answers.jsonl` in the run folder, so an interrupted build
goes on where it stopped. A block's answers depend on its place and the start model alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.api import ConfigError, Message, Sampling, ScoreRequest, disk_guard, read_rows
from plugins.nlft import Judge, NlftConfig
from plugins.nlft.items import Item, filled, judged

if TYPE_CHECKING:
    from core.training.run import StageRun

FILE = "answers.jsonl"
FIELDS = {"key", "prompt", "answer", "ids", "right", "judgement", "error"}
BLOCK = 32
"""Answers that are made, checked and judged together."""

RULE = "The answer is wrong. The right answer is: {gold}"
ASK = (
    "Question:\n{prompt}\n\nResponse:\n{answer}\n\nStandard answer:\n{gold}\n\n"
    "Say in one or two sentences what is wrong with the response and where. "
    "If it is right after all, reply with the one word: correct"
)

Ask = Callable[[Sequence[str]], list[str | None]]
"""Judgements of questions put as text, None where one failed."""


@dataclass
class Built:
    """Items with answers and judgements, and why others have none."""

    items: list[Item]
    failures: list[tuple[Item, str]]


def build_items(run: StageRun, items: Sequence[Item]) -> Built:
    """Fill in what the items lack.

    What fails costs its item, is counted and told in `failures`, and never ends the run. Raises ConfigError when the
    endpoint's key is not in the environment.
    """
    path = run.dir / FILE
    _close_torn_line(path)
    known = {row["key"]: row for row in read_rows(path) if row.keys() >= FIELDS}
    waiting = [item for item in items if item.answer is None or item.right is None or _unjudged(item)]
    if waiting:
        maker = _Maker(run, waiting)
        for start in range(0, len(waiting), BLOCK):
            block = waiting[start : start + BLOCK]
            if all(item.record.key in known for item in block):
                continue
            rows = [row for row in maker.rows(block, start // BLOCK) if row["key"] not in known]
            with disk_guard(path), path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            known |= {row["key"]: row for row in rows}
            run.say(f"answers: {start + len(block)} of {len(waiting)} made and judged")
    built = Built([], [])
    made = {item.record.key for item in waiting}
    for item in items:
        row = known[item.record.key] if item.record.key in made else {}
        ready = _read(item, row) if row else item
        if row.get("error"):
            built.failures.append((item, str(row["error"])))
        elif not ready.right and not ready.record.spans and not ready.gold:
            built.failures.append((item, "a wrong answer without a gold answer beside it"))
        else:
            built.items.append(ready)
    return built


def _close_torn_line(path: Path) -> None:
    """End a last line that a killed process left half written, so that the next one stands by itself."""
    if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with disk_guard(path), path.open("ab") as file:
            file.write(b"\n")


def _unjudged(item: Item) -> bool:
    return item.right is False and item.judgement is None and not item.record.spans


def _read(item: Item, row: dict[str, Any]) -> Item:
    ids = tuple(row["ids"])
    return replace(item, answer=row["answer"], answer_ids=ids, right=row["right"], judgement=row["judgement"])


def check_rule(items: Iterable[Item], cfg: NlftConfig) -> str:
    """Name of the reward model that tells right from wrong."""
    if cfg.check != "auto":
        return cfg.check
    return "numeric" if all(_is_number(item.final) for item in items) else "exact"


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").replace("$", ""))
    except ValueError:
        return False
    return True


class _Maker:
    """Makes, checks and judges the answers of a block."""

    def __init__(self, run: StageRun, waiting: Sequence[Item]) -> None:
        self.run, self.cfg = run, run.cfg.stage
        self.rule = check_rule(waiting, self.cfg)
        self.ask: Ask | None = None
        if self.cfg.judge is not Judge.rules:
            self.ask = _Endpoint(self.cfg) if self.cfg.judge is Judge.endpoint else _Self(run)

    def rows(self, block: Sequence[Item], number: int) -> list[dict[str, Any]]:
        """The block's lines of answers.jsonl."""
        items = self._judged(self._checked(self._answered(block, number)))
        return [
            {
                "key": item.record.key,
                "prompt": item.record.prompt[-1].content,
                "answer": item.answer,
                "ids": list(item.answer_ids),
                "right": item.right,
                "judgement": item.judgement,
                "error": error,
            }
            for item, error in items
        ]

    def _answered(self, block: Sequence[Item], number: int) -> list[Item]:
        """The block with the start model's own answers where rows bring none."""
        if all(item.answer is not None for item in block):
            return list(block)
        run, cfg = self.run, self.cfg
        # The whole block is sampled, even for a part of it: a prompt's place in the call decides what is drawn.
        seed = run.seed_for("answers", number)
        sampling = Sampling(cfg.max_new_tokens, cfg.temperature, seed=seed, stop_token_ids=(run.codec.eos,))
        prompts = run.codec.prompts([item.record.prompt for item in block])
        rollouts = run.evaluation_engine().generate(prompts, sampling)
        return [
            item
            if item.answer is not None
            else replace(item, answer=run.codec.text(rollout.completion_ids), answer_ids=tuple(rollout.completion_ids))
            for item, rollout in zip(block, rollouts, strict=True)
        ]

    def _checked(self, items: Sequence[Item]) -> list[tuple[Item, str]]:
        """The items with `right`, each with the reason why it cannot be told."""
        unknown = [place for place, item in enumerate(items) if item.right is None]
        checked: list[tuple[Item, str]] = [(item, "") for item in items]
        requests = [
            ScoreRequest(item.record.prompt[-1].content, item.answer or "", answer=item.final, meta=item.record.meta)
            for item in (items[place] for place in unknown)
        ]
        scores = self.run.rule_scorer(self.rule).score(requests) if requests else []
        for place, score in zip(unknown, scores, strict=True):
            if score.value is None:
                checked[place] = (items[place], f"the rule '{self.rule}' failed: {score.error}")
            else:
                checked[place] = (replace(items[place], right=score.value >= 1.0), "")
        return checked

    def _judged(self, items: list[tuple[Item, str]]) -> list[tuple[Item, str]]:
        """The items with judgements of the wrong answers."""
        wrong = [place for place, (item, error) in enumerate(items) if not error and _unjudged(item)]
        texts: list[str | None]
        if self.ask is None:
            texts = [filled(RULE, gold=items[place][0].final or items[place][0].gold) for place in wrong]
        else:
            texts = self.ask([_question(items[place][0]) for place in wrong])
        for place, text in zip(wrong, texts, strict=True):
            item = items[place][0]
            items[place] = (judged(item, text), "") if text and text.strip() else (item, "the judge gave no judgement")
        return items


def _question(item: Item) -> str:
    return filled(ASK, prompt=item.record.prompt[-1].content, answer=item.answer or "", gold=item.gold)


class _Self:
    """The start model as its own judge."""

    def __init__(self, run: StageRun) -> None:
        self.run = run

    def __call__(self, questions: Sequence[str]) -> list[str | None]:
        run = self.run
        if not questions:
            return []
        cfg = run.cfg.stage
        prompts = run.codec.prompts([[Message("user", text)] for text in questions])
        room = run.cfg.model.max_length - cfg.judge_tokens
        fitting = [ids for ids in prompts if len(ids) <= room]
        sampling = Sampling(cfg.judge_tokens, 0.0, stop_token_ids=(run.codec.eos,))
        rollouts = iter(run.evaluation_engine().generate(fitting, sampling) if fitting else [])
        return [run.codec.text(next(rollouts).completion_ids) if len(ids) <= room else None for ids in prompts]


class _Endpoint:
    """An OpenAI-compatible chat service; a question that fails twice has no judgement."""

    def __init__(self, cfg: NlftConfig) -> None:
        self.cfg = cfg
        self.key = os.environ.get(cfg.endpoint_key_env, "")
        if not self.key:
            raise ConfigError(
                f"the environment variable {cfg.endpoint_key_env} holds no key for the judge's endpoint",
                "stage.endpoint_key_env", f"export {cfg.endpoint_key_env}=… (any text where the service asks for none)",
            )  # fmt: skip

    def __call__(self, questions: Sequence[str]) -> list[str | None]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(self._one, questions))

    def _one(self, question: str) -> str | None:
        import httpx

        body = {
            "model": self.cfg.endpoint_model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.cfg.judge_tokens,
            "temperature": 0,
        }
        for _ in range(2):
            try:
                answer = httpx.post(
                    f"{self.cfg.endpoint_url.rstrip('/')}/chat/completions",
                    headers={"Authorization": f"Bearer {self.key}"}, json=body, timeout=self.cfg.endpoint_timeout_s,
                )  # fmt: skip
                text = answer.raise_for_status().json()["choices"][0]["message"]["content"]
            except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
                continue
            if isinstance(text, str) and text.strip():
                return text.strip()
        return None
