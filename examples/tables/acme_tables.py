"""A generator of records, and a set of directives for `stage=cft`."""

import json
import random

from core.api import DataSourceSpec, TextSetSpec, hookimpl

PREFTUNE_API = 2


def write(folder, seed):
    """Products below 12, a fifth held out; raise the version in the spec when the rows change."""
    products = [(a, b) for a in range(12) for b in range(a)]
    random.Random(seed).shuffle(products)
    for name, part in (("heldout", products[:13]), ("sft", products[13:])):
        rows = [{"prompt": f"{a} × {b}", "completion": str(a * b), "answer": str(a * b)} for a, b in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@hookimpl
def register_data_sources():
    return [DataSourceSpec("times_table", "acme_tables:write", version="1", summary="products below 12")]


@hookimpl
def register_text_sets():
    texts = {"recall": ["Cover the text and say it again."], "check": ["Work every example through by hand."]}
    return [TextSetSpec("study_tables", "directives", texts, "learning by heart, and checking")]
