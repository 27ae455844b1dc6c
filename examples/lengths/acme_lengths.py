"""An observer: how long the sample completions of a run are, before and after training, as a part of the report."""

from html import escape
from statistics import mean

from core.api import Section, hookimpl

PREFTUNE_API = 1
_lengths = {}
"""Characters of the sample completions by run folder and time ("before", "step", "after")."""


@hookimpl
def on_run_start(run):
    _lengths[run.dir] = {}


@hookimpl
def on_samples(run, rows):
    for row in rows:
        _lengths[run.dir].setdefault(row["when"], []).append(len(row["completion"]))


@hookimpl
def on_run_error(run):
    _lengths.pop(run.dir, None)


@hookimpl
def report_section(run):
    rows = [(when, mean(found), max(found)) for when, found in _lengths.pop(run.dir, {}).items()]
    if not rows:
        return None
    cells = "".join(f"<tr><td>{escape(when)}</td><td>{m:.0f}</td><td>{n}</td></tr>" for when, m, n in rows)
    lines = [f"| {when} | {m:.0f} | {n} |" for when, m, n in rows]
    return Section(
        title="Completion lengths",
        html=f"<table><tr><th>when</th><th>mean characters</th><th>longest</th></tr>{cells}</table>",
        markdown="\n".join(["| when | mean characters | longest |", "|---|---|---|", *lines]),
    )
