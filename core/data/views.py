"""What a stage takes of records: those that serve its schema, with the fields that it asks for. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from core.data.dialects import Dialect
from core.data.files import NEEDS
from core.data.records import Message, Record
from core.errors import DataError
from core.settings.data_schema import DATA_PATH


def as_schema(records: Iterable[Record], schema: str, dialects: Iterable[Dialect] = ()) -> list[Record]:
    """The records that serve a schema (one of core.platform.specs.SCHEMAS), with the fields that it asks for.

    sft: a preference pair serves with its chosen completion, of several records of one row the first alone; a record
        labelled bad does not serve.
    corpus: raw text serves, and what serves sft.
    prompts: every record with a prompt serves, equal prompts once, the one with an answer before the others.
    feedback: completions of any label and pairs serve as they are.
    dialects: those that were found, for the message.
    Raises: DataError when no record serves.
    """
    if schema not in NEEDS:
        raise ValueError(f"schema must be one of {', '.join(NEEDS)}, got {schema!r}")
    if schema == "prompts":
        served = prompts_of(records)
    else:
        served = [kept for record in records if (kept := serving(record, schema)) is not None]
    if not served:
        raise none_serves(schema, dialects)
    return served


def serving(record: Record, schema: str) -> Record | None:
    """What the schemas that look at records one by one take of a record; None where it does not serve."""
    if schema == "corpus" and record.text is not None:
        return record
    if schema in ("sft", "corpus"):
        if record.completion is not None and record.label is not False and record.prompt:
            return record
        if record.chosen is not None and not record.meta.get("part"):
            return replace(record, completion=record.chosen, chosen=None, rejected=None, margin=None)
        return None
    if schema == "feedback":
        return record if record.prompt and (record.completion or record.chosen) else None
    serves = record.text is not None if schema == "text" else record.chosen is not None and record.rejected is not None
    return record if serves else None


def none_serves(schema: str, dialects: Iterable[Dialect] = ()) -> DataError:
    """The error for records of which none serves the schema."""
    found = "; ".join(f"'{dialect.name}' with the columns {', '.join(dialect.columns)}" for dialect in dialects)
    return DataError(
        "no record serves: the stage needs {needs}, the rows are {found}",
        where="{key}",
        mend="take other records, or name their columns with {part}.columns={{…}}",
        key=DATA_PATH,
        needs=NEEDS[schema],
        found=found or "of another kind",
    )


def prompts_of(records: Iterable[Record]) -> list[Record]:
    """Prompts alone, each once, in the order of their first record."""
    found: dict[str, Record] = {}
    for record in records:
        if record.prompt:
            known = found.get(record.prompt_key)
            if known is None or (known.answer is None and record.answer is not None):
                found[record.prompt_key] = record
    return [
        Record(prompt=record.prompt, answer=record.answer, tools=record.tools, meta=record.meta)
        for record in found.values()
    ]


def with_system(record: Record, system: str) -> Record:
    """The record with a system message before its prompt, where it has a prompt and no such message."""
    if not record.prompt or any(message.role == "system" for message in record.prompt):
        return record
    return replace(record, prompt=(Message("system", system), *record.prompt))
