from __future__ import annotations

import re
from pathlib import Path

from inferscope.sinks import semconv
from inferscope.sinks.reference import reference_markdown

DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "telemetry.md"
TABLES = (semconv.REQUEST_START, semconv.REQUEST_END, semconv.PHASE, semconv.WORST_PASS, semconv.PASS)


def test_the_reference_is_the_table():
    assert DOCUMENT.read_text(encoding="utf-8") == reference_markdown(), "run python benchmarks/tables.py"


def test_names_are_unique_on_a_span_and_dotted():
    for span in ((*semconv.REQUEST_START, *semconv.REQUEST_END), semconv.PHASE, semconv.WORST_PASS, semconv.PASS):
        names = [row.name for row in span]
        assert len(names) == len(set(names))
        assert all(re.fullmatch(r"(gen_ai|inferscope|error)(\.[a-z0-9_]+)+", name) for name in names)


def test_a_name_has_one_type_and_unit_wherever_it_stands():
    kinds: dict[str, tuple[str, str]] = {}
    for row in (row for rows in TABLES for row in rows):
        assert kinds.setdefault(row.name, (row.type, row.unit)) == (row.type, row.unit)


def test_numbers_have_units_and_text_has_none():
    for row in (row for rows in TABLES for row in rows):
        if row.type == "double":
            assert row.unit, row.name
        elif row.type != "int":
            assert row.unit == "", row.name
        assert row.meaning.endswith(".")
        assert "|" not in row.meaning
