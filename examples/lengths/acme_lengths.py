"""An observer: how long the sample completions of a run are, before and after training, as a part of the report."""

from statistics import mean

from core.api import Section, hookimpl, html_table, markdown_table

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
    rows = [(when, f"{mean(found):.0f}", max(found)) for when, found in _lengths.pop(run.dir, {}).items()]
    if not rows:
        return None
    head = ("when", "mean characters", "longest")
    return Section("Completion lengths", html_table(head, rows), markdown_table(head, rows))
