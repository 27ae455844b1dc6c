"""What the plan says of set building, in lines for people. Everything may be missing."""

from __future__ import annotations

from typing import Any

from core.report.format import Pairs, as_dict, as_list, count, number, text_of


def mixture_pairs(data: dict[str, Any]) -> Pairs:
    """Source and what it gives to the mixture."""
    pairs: Pairs = []
    for name, value in as_dict(data.get("mixture")).items():
        source = as_dict(value)
        weight, passes = number(source.get("weight")), number(source.get("passes"))
        parts = [f"{count(source.get('records'))} drawn of {count(source.get('capped'))}"]
        parts += [f"weight {weight:.3g}"] if weight is not None else []
        parts += [f"{passes:.3g} passes"] if passes is not None else []
        parts.append(f"{count(source.get('heldout'))} held out")
        pairs.append((name, ", ".join(parts)))
    return pairs


def transform_pairs(data: dict[str, Any]) -> Pairs:
    """Transform and what it did, in order."""
    pairs: Pairs = []
    for value in as_list(data.get("transforms")):
        step = as_dict(value)
        parts = [f"{count(step.get('before'))} → {count(_sum(step, 'kept', 'added'))}"]
        dropped = f"{count(step.get('dropped'))} dropped"
        if reasons := as_dict(step.get("reasons")):
            dropped += f" ({', '.join(f'{reason} {count(times)}' for reason, times in list(reasons.items())[:4])})"
        parts += [dropped] if step.get("dropped") else []
        parts += [f"{count(step['added'])} added"] if step.get("added") else []
        parts += [f"{count(step['heldout_dropped'])} held out dropped"] if step.get("heldout_dropped") else []
        pairs.append((text_of(step.get("name")), ", ".join(parts)))
    return pairs


def example_pairs(data: dict[str, Any]) -> Pairs:
    """Transform and one record that it dropped or added."""
    pairs: Pairs = []
    for value in as_list(data.get("transforms")):
        step = as_dict(value)
        for example in map(as_dict, as_list(step.get("examples"))[:2]):
            place = f"{text_of(example.get('file'))}:{text_of(example.get('line'))}"
            pairs.append(
                (f"{text_of(step.get('name'))} example", f"{place}: {text_of(example.get('reason'))}: "
                 f"{text_of(example.get('text'))}")
            )  # fmt: skip
    return pairs


def _sum(step: dict[str, Any], *names: str) -> float | None:
    values = [number(step.get(name)) for name in names]
    return None if any(value is None for value in values) else sum(value or 0 for value in values)
