"""WATERMARK FOR: what it may be, where it lives, and that it comes back as it was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_engine.errors import InvalidOption, StatementRefused
from storage_engine.schema import TableDescriptor, parse_statements, render_create_table
from storage_engine.schema.descriptor import Watermark
from storage_engine.schema.evolve import check_evolution, drop_columns, rename_column, set_options
from storage_engine.schema.statements import CreateTable


def created(elements: str, options: str = "") -> TableDescriptor:
    statement = parse_statements(f"CREATE TABLE db.t ({elements}) {options}")[0]
    assert isinstance(statement, CreateTable)
    return statement.descriptor


@pytest.mark.parametrize(
    ("expression", "delay_ms"),
    [
        ("ts", 0),
        ("ts - INTERVAL '5' SECOND", 5000),
        ("`ts` - INTERVAL '0.001' SECOND", 1),
        ("ts - INTERVAL '2' MINUTE", 120_000),
        ("ts - INTERVAL '1' DAY", 86_400_000),
    ],
)
def test_the_clause_says_column_and_delay(expression: str, delay_ms: int) -> None:
    found = created(f"id BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS {expression}")
    assert found.watermark == Watermark("ts", delay_ms)


@given(st.integers(0, 400_000_000))
def test_a_delay_survives_show_create_table(delay_ms: int) -> None:
    table = created("`at` TIMESTAMP(3), id INT", f"WITH ('watermark.column' = 'at', 'watermark.delay' = '{delay_ms}ms')")
    text = render_create_table(table)
    again = parse_statements(text)[0]
    assert "WATERMARK FOR" in text
    assert isinstance(again, CreateTable)
    assert again.descriptor.watermark == table.watermark == Watermark("at", delay_ms)


@pytest.mark.parametrize(
    ("elements", "options", "message"),
    [
        ("ts BIGINT, WATERMARK FOR ts AS ts", "", "the column is BIGINT"),
        ("ts TIMESTAMP(6), WATERMARK FOR ts AS ts", "", r"TIMESTAMP\(3\)"),
        ("ts TIMESTAMP_LTZ(3), WATERMARK FOR ts AS ts", "", "the column is TIMESTAMP_LTZ"),
        ("ts TIMESTAMP(3), WATERMARK FOR t2 AS t2", "", "there is no such column"),
        ("ts TIMESTAMP(3), u TIMESTAMP(3), WATERMARK FOR ts AS u", "", "follows its own column"),
        ("ts TIMESTAMP(3), WATERMARK FOR ts AS ts + INTERVAL '5' SECOND", "", "is not understood"),
        ("ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' MONTH", "", "is no length of time"),
        ("ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1.5' MINUTE", "", "only seconds"),
        ("ts TIMESTAMP(3), WATERMARK FOR ts AS ts, WATERMARK FOR ts AS ts", "", "written twice"),
        ("id INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts, PRIMARY KEY (id) NOT ENFORCED", "", "can be taken back"),
        ("ts TIMESTAMP(3)", "WITH ('watermark.late-rows' = 'drop')", "the table has none"),
        ("ts TIMESTAMP(3), WATERMARK FOR ts AS ts", "WITH ('watermark.late-rows' = 'keep')", "not a choice"),
        ("ts TIMESTAMP(3), WATERMARK FOR ts AS ts", "WITH ('watermark.delay' = '5s')", "written twice"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(elements: str, options: str, message: str) -> None:
    with pytest.raises((StatementRefused, InvalidOption), match=message):
        created(elements, options)


def test_a_column_may_be_called_watermark() -> None:
    assert created("watermark TIMESTAMP(3), WATERMARK FOR watermark AS watermark").watermark == Watermark("watermark", 0)


def test_the_watermark_follows_its_column_and_holds_it() -> None:
    table = created("id BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND")
    assert rename_column(table, "ts", "at").watermark == Watermark("at", 5000)
    with pytest.raises(StatementRefused, match=r"watermark\.column"):
        drop_columns(table, ["ts"])
    with pytest.raises(InvalidOption, match="fixed when the table is created"):
        set_options(table, {"watermark.late-rows": "update"})


def test_a_table_with_a_watermark_keeps_its_buckets() -> None:
    table = created("id BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts")
    with pytest.raises(StatementRefused, match="a new bucket would have no event time"):
        check_evolution(table, set_options(table, {"bucket.num": "3"}))


def test_a_descriptor_from_before_there_were_watermarks_is_read() -> None:
    table = created("id BIGINT, ts TIMESTAMP(3)")
    assert not [name for name in table.to_json()["options"] if name.startswith("watermark")]
    assert TableDescriptor.from_json(table.to_json()).watermark is None
