"""What the targets are made of: shares of the branches and their log-probabilities under the start model, as numbers
and as a part of the report. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from core.api import Section, html_table, markdown_table
from plugins.s3ft.route import ERROR, GOLD, PARAPHRASE, SELF

BRANCHES = (SELF, PARAPHRASE, GOLD)
_EXAMPLES = 2
"""Targets shown of each branch."""
_SHOWN_CHARS = 600


def composition(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Numbers of the targets.

    items, share_<branch> (0..1), items_<branch>; logprob_<branch>: mean over the branch's items of a target's mean
    log-probability a token under the start model, in nats, and gold_logprob_<branch>: of the gold answers to the same
    items. target_tokens and gold_tokens: in all. judge_errors: answers that the judge failed on. A branch without
    items has no log-probabilities.
    """
    facts: dict[str, float] = {"items": len(rows)}
    for branch in BRANCHES:
        own = [row for row in rows if row["branch"] == branch]
        facts[f"items_{branch}"] = len(own)
        facts[f"share_{branch}"] = len(own) / len(rows)
        if own:
            facts[f"logprob_{branch}"] = sum(row["logprob"] for row in own) / len(own)
            facts[f"gold_logprob_{branch}"] = sum(row["gold_logprob"] for row in own) / len(own)
    facts["target_tokens"] = sum(len(row["completion_ids"]) for row in rows)
    facts["gold_tokens"] = sum(row["gold_tokens"] for row in rows)
    facts["judge_errors"] = sum(len(row["judge_errors"]) for row in rows)
    return facts


def rejections(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """(branch, reason, number of items), the most frequent first."""
    counts = Counter((branch, reason) for row in rows for branch, reason in row["rejected"].items())
    return [(branch, reason, count) for (branch, reason), count in counts.most_common()]


def section(rows: Sequence[dict[str, Any]], algorithm: str, judge: str) -> Section:
    """The part of the report: composition, why answers were not taken, examples."""
    facts = composition(rows)
    head = ["branch", "items", "share", "log p of the target", "log p of the gold answer"]
    body = [
        [branch, f"{facts[f'items_{branch}']}", f"{facts[f'share_{branch}']:.1%}", _nats(facts, f"logprob_{branch}"),
         _nats(facts, f"gold_logprob_{branch}")]
        for branch in BRANCHES
    ]  # fmt: skip
    refused = [[branch, reason, str(count)] for branch, reason, count in rejections(rows)]
    about = (
        f"{len(rows)} targets by {algorithm}, judged by '{judge}': "
        f"{facts['target_tokens']} tokens, {facts['gold_tokens']} in the gold answers. Log-probabilities are means a "
        "token in nats under the start model, over the items of the branch."
    )
    if facts["judge_errors"]:
        about += f" The judge failed on {facts['judge_errors']} answers, which count as wrong ({ERROR})."
    parts = [f"<p>{escape(about)}</p>", html_table(head, body)]
    text = [about, "", markdown_table(head, body)]
    if refused:
        columns = ["branch", "why its answer was not taken", "items"]
        parts.append(html_table(columns, refused))
        text += ["", markdown_table(columns, refused)]
    for branch in BRANCHES:
        for row in [row for row in rows if row["branch"] == branch][:_EXAMPLES]:
            *_, asked, said = (message["content"] for message in row["messages"])
            texts = [("prompt", asked), ("target", said), *([("gold", row["gold"])] if branch != GOLD else [])]
            lines = "".join(f"<dt>{name}</dt><dd><pre>{escape(_clip(value))}</pre></dd>" for name, value in texts)
            parts.append(f"<details><summary>{branch}: {escape(_clip(asked)[:80])}</summary><dl>{lines}</dl></details>")
    return Section("Targets", "".join(parts), "\n".join(text), order=20)


def _nats(facts: dict[str, float], name: str) -> str:
    return f"{facts[name]:.3f}" if name in facts else "–"


def _clip(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
