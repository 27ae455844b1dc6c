"""Rules that need no model: regex, format, length, exact text, JSON. Values lie in 0..1."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence

from core.api import Score, ScorerContext, ScoreRequest
from reward_models import (
    ExactConfig,
    FormatConfig,
    JsonConfig,
    LengthConfig,
    Penalty,
    RegexConfig,
    Side,
)


class Rule:
    """A scorer out of a function of one request."""

    def __init__(self, function: Callable[[ScoreRequest], Score]) -> None:
        self.function = function

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """One Score for each request, in order."""
        return [self.function(request) for request in requests]


def text_for(request: ScoreRequest, criterion: str) -> str:
    """The text that a criterion is looked for in: the answer; where the criterion names the tag <think>, the thought in
    that tag and then the answer, whatever marks the model's family writes. A thought that was cut off is not closed."""
    if "think>" not in criterion:
        return request.completion
    if not request.thought:
        return request.completion
    closed = f"\n</think>\n\n{request.completion}" if request.completion else ""
    return f"<think>\n{request.thought}{closed}"


def build_regex(config: RegexConfig, context: ScorerContext) -> Rule:  # noqa: ARG001 - signature of every build
    """1.0 where the completion matches, else 0.0."""
    flags = (re.IGNORECASE if config.ignore_case else 0) | (re.DOTALL if config.dot_all else 0)
    pattern = re.compile(config.pattern, flags)
    match = pattern.fullmatch if config.full else pattern.search
    return Rule(lambda request: Score(1.0 if match(text_for(request, config.pattern)) else 0.0))


def build_format(config: FormatConfig, context: ScorerContext) -> Rule:  # noqa: ARG001
    """Weighted share of the criteria met; `parts` holds each criterion as 0.0 or 1.0."""
    patterns = [re.compile(pattern, re.DOTALL) for pattern in config.patterns]
    weights = config.weights or [1.0] * len(patterns)
    tags = "".join(f"<{tag}>" for tag in config.sections)

    def score(request: ScoreRequest) -> Score:
        met: dict[str, tuple[bool, float]] = {}
        if config.prefix:
            met["prefix"] = text_for(request, config.prefix).strip().startswith(config.prefix.strip()), 1.0
        if config.suffix:
            met["suffix"] = text_for(request, config.suffix).strip().endswith(config.suffix.strip()), 1.0
        text = text_for(request, tags).strip()
        for tag, good in zip(config.sections, sections_met(text, config.sections), strict=True):
            met[f"section_{tag}"] = good, 1.0
        for index, (pattern, weight) in enumerate(zip(patterns, weights, strict=True)):
            met[f"pattern_{index}"] = bool(pattern.search(text_for(request, pattern.pattern).strip())), weight
        total = sum(weight for _, weight in met.values())
        share = sum(weight for good, weight in met.values() if good) / total
        if config.all_or_nothing:
            share = float(all(good for good, _ in met.values()))
        return Score(share, parts={name: float(good) for name, (good, _) in met.items()})

    return Rule(score)


def sections_met(text: str, tags: Sequence[str]) -> list[bool]:
    """Whether each tag stands exactly once as `<tag>…</tag>` with something inside, after the end of the section
    before it (of those that are themselves well formed)."""
    met, position = [], 0
    for tag in tags:
        start, end = f"<{tag}>", f"</{tag}>"
        opened, closed = text.find(start), text.find(end)
        once = text.count(start) == 1 and text.count(end) == 1
        inside = text[opened + len(start) : closed].strip() if once and opened < closed else ""
        good = bool(inside) and opened >= position
        met.append(good)
        if good:
            position = closed + len(end)
    return met


def build_length(config: LengthConfig, context: ScorerContext) -> Rule:  # noqa: ARG001
    """Score by the distance of the length from its target, see LengthConfig; `parts` holds the length.

    A request with text but without token ids is an error when the target is in tokens.
    """
    target = config.target_tokens or config.target_chars
    width = config.width or target

    def score(request: ScoreRequest) -> Score:
        said = request.completion or request.thought
        if config.target_tokens and said and not request.completion_ids:
            return Score(None, error="reward.target_tokens needs the completion's token ids, the request has none")
        whole = config.thought
        if config.target_tokens:
            length = len(request.completion_ids) - (0 if whole else request.answer_at)
        else:
            length = len(request.completion) + (len(request.thought) if whole else 0)
        distance = length - target
        if (config.side is Side.over and distance < 0) or (config.side is Side.under and distance > 0):
            distance = 0
        u = max(0, abs(distance) - config.tolerance) / width
        value = {
            Penalty.linear: max(0.0, 1.0 - u),
            Penalty.quadratic: max(0.0, 1.0 - u * u),
            Penalty.gaussian: math.exp(-u * u / 2),
            Penalty.step: 1.0 if u == 0 else 0.0,
        }[config.shape]
        return Score(value, parts={"length": float(length)})

    return Rule(score)


def build_exact(config: ExactConfig, context: ScorerContext) -> Rule:  # noqa: ARG001
    """1.0 where the completion's answer equals the gold one after normalisation, else 0.0; no gold is an error."""
    extract = re.compile(config.extract, re.DOTALL) if config.extract else None

    def score(request: ScoreRequest) -> Score:
        if request.answer is None:
            return Score(None, error="the record has no answer")
        text = request.completion
        if extract:
            matches = list(extract.finditer(text))
            if not matches:
                return Score(0.0)
            text = (matches[-1][1] if extract.groups else matches[-1][0]) or ""
        return Score(1.0 if normalise(text, config) == normalise(request.answer, config) else 0.0)

    return Rule(score)


def normalise(text: str, config: ExactConfig) -> str:
    """`text` as `exact` compares it. Idempotent: normalise(normalise(t)) == normalise(t)."""
    if config.lower:  # Unicode 3.13, D146: compatibility caseless matching
        text = unicodedata.normalize("NFKD", text).casefold()
        text = unicodedata.normalize("NFKD", text).casefold()
    text = unicodedata.normalize("NFKC", text)
    if config.punctuation:
        text = "".join(char for char in text if not unicodedata.category(char).startswith("P"))
        text = unicodedata.normalize("NFKC", text)  # marks may now touch another base
    text = re.sub(r"\s+", " ", text)
    return text.strip() if config.strip else text


def build_json(config: JsonConfig, context: ScorerContext) -> Rule:  # noqa: ARG001
    """Validity and keys, see JsonConfig; `parts` holds `valid` and, where keys are asked, `keys` (their share)."""

    def score(request: ScoreRequest) -> Score:
        text = unfenced(request.completion) if config.fenced else request.completion
        try:
            # Numbers stay text: their size must not matter.
            found = json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return Score(0.0, parts={"valid": 0.0})
        if not config.keys:
            return Score(1.0, parts={"valid": 1.0})
        share = sum(key in found for key in config.keys) / len(config.keys) if isinstance(found, dict) else 0.0
        return Score(share if config.partial else float(share == 1), parts={"valid": 1.0, "keys": share})

    return Rule(score)


def unfenced(text: str) -> str:
    """What stands in the first ``` fence with an optional `json` tag; `text` itself where there is no whole one."""
    _, opened, rest = text.partition("```")
    tag, line_end, body = rest.partition("\n")
    inside, closed, _ = body.partition("```")
    whole = opened and line_end and closed and tag.strip().lower() in ("", "json")
    return inside if whole else text


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
