"""The contracts of data sources and text sets."""

from core.testing.contracts import DataSourceContract, TextSetContract


class TestTimesTable(DataSourceContract):
    source = "times_table"


class TestDirectives(TextSetContract):
    text_set = "study_tables"
    kind = "directives"
