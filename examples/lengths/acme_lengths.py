"""An observer: how long the sample completions of a run are, before and after training, as a part of the report."""

from statistics import mean

from core.api import Section, hookimpl, html_table, markdown_table

PREFTUNE_API = 2
_lengths = {}
"""Characters of the sample completions by run folder and time ("before", "step", "after")."""


@hookimpl
def on_run_start(run):
    _lengths[run.folder] = {}


@hookimpl
def on_samples(run, rows):
    for row in rows:
        _lengths[run.folder].setdefault(row["when"], []).append(len(row["completion"]))


@hookimpl
def on_run_error(run):
    _lengths.pop(run.folder, None)


@hookimpl
def report_section(run):
    rows = [(when, f"{mean(found):.0f}", max(found)) for when, found in _lengths.pop(run.folder, {}).items()]
    if not rows:
        return None
    head = ("when", "mean characters", "longest")
    return Section("Completion lengths", html_table(head, rows), markdown_table(head, rows))
