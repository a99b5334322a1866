"""ALTER TABLE: what becomes of a descriptor, which types are wider, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pytest

from storage_engine.engine.catalog import altered, created
from storage_engine.errors import InvalidOption, SchemaMismatch, StatementRefused, TableAltered
from storage_engine.schema import add_columns, drop_columns, modify_columns, rename_column, set_options
from storage_engine.schema.ddl import parse_statements
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.schema.evolve import fitted, is_widening, options_renamed
from storage_engine.schema.types import arrow_type


def table(options: dict[str, str] | None = None, **changes) -> TableDescriptor:
    columns = (Column("k", "BIGINT"), Column("n", "INT"), Column("s", "STRING"), Column("b", "BYTES"), Column("ds", "STRING"))
    return created(TableDescriptor("db.t", columns, **{"primary_key": ("k", "ds"), **changes}, options=options or {}), 1)


def ids(descriptor: TableDescriptor) -> dict[str, int]:
    return {column.name: column.field_id for column in descriptor.columns}


def test_added_columns_come_last_with_ids_that_no_column_ever_had_and_a_new_schema_id():
    (alter,) = parse_statements("ALTER TABLE db.t ADD (x BIGINT COMMENT 'new', y STRING)")

    changed = altered(table(), add_columns(table(), alter.columns), next_field_id=9)

    assert ids(changed) == {"k": 0, "n": 1, "s": 2, "b": 3, "ds": 4, "x": 9, "y": 10}
    assert changed.schema_id == table().schema_id + 1


def test_a_column_dropped_and_added_again_under_its_name_is_another_column():
    without = altered(table(), drop_columns(table(), ["n"]), next_field_id=5)

    again = altered(without, add_columns(without, [Column("n", "INT")]), next_field_id=5)

    assert ids(again) == {"k": 0, "s": 2, "b": 3, "ds": 4, "n": 5}


@pytest.mark.parametrize(
    ("column", "what"), [(Column("n", "INT"), "declared twice"), (Column("x", "INT", nullable=False), "must be nullable")]
)
def test_a_column_that_cannot_be_added_is_refused(column, what):
    with pytest.raises(StatementRefused, match=what):
        add_columns(table(), [column])


def test_a_renamed_column_keeps_its_id_and_keys_and_options_follow():
    before = table(
        {
            "table.merge-engine": "aggregation",
            "fields.n.agg": "sum",
            "fields.s.agg": "listagg",
            "fields.s.listagg.delimiter": "|",
            "bucket.key": "k",
        },
        partition_keys=("ds",),
    )

    for old, new in (("k", "id"), ("n", "total"), ("s", "texts"), ("ds", "day")):
        before = altered(before, rename_column(before, old, new), next_field_id=5)

    assert ids(before) == {"id": 0, "total": 1, "texts": 2, "b": 3, "day": 4}
    assert (before.primary_key, before.partition_keys, before.bucket_keys) == (("id", "day"), ("day",), ("id",))
    assert before.options == {
        "table.merge-engine": "aggregation",
        "fields.total.agg": "sum",
        "fields.texts.agg": "listagg",
        "fields.texts.listagg.delimiter": "|",
    }
    assert before.schema_id == 4


def test_the_column_that_counts_may_be_renamed_and_not_dropped():
    counted = table({"table.merge-engine": "aggregation", "fields.n.agg": "sum", "table.delete.on-zero": "n"})

    after = altered(counted, rename_column(counted, "n", "N"), next_field_id=5)

    assert after.options == {"table.merge-engine": "aggregation", "fields.N.agg": "sum", "table.delete.on-zero": "N"}
    with pytest.raises(StatementRefused, match=r"column N is named by 'table\.delete\.on-zero'"):
        drop_columns(after, ["N"])


def test_options_of_a_column_with_a_dot_in_its_name_are_told_apart():
    options = {"fields.a.agg": "sum", "fields.a.b.agg": "max", "table.merge-engine.versioned.ver-column": "a"}

    assert options_renamed(options, {"a": "x"}) == {
        "fields.x.agg": "sum",
        "fields.a.b.agg": "max",
        "table.merge-engine.versioned.ver-column": "x",
    }


def test_a_dropped_column_takes_the_options_of_its_function_along():
    before = table({"table.merge-engine": "aggregation", "fields.n.agg": "sum", "fields.b.agg": "rbm32"})

    after = altered(before, drop_columns(before, ["n"]), next_field_id=5)

    assert after.options == {"table.merge-engine": "aggregation", "fields.b.agg": "rbm32"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: drop_columns(t, ["k"]), "column k is in the primary key"),
        (lambda t: drop_columns(t, ["ds"]), "column ds is in the primary key"),
        (lambda t: drop_columns(t, ["x"]), "there is no column x"),
        (lambda t: drop_columns(t, ["n", "n"]), "column n is named twice"),
        (lambda t: rename_column(t, "n", "S"), "column s differs from column S only in case"),
        (lambda t: add_columns(t, [Column("N", "INT")]), "column N differs from column n only in case"),
        (lambda t: rename_column(t, "n", "s"), "there is a column s already"),
        (lambda t: rename_column(t, "x", "y"), "there is no column x"),
        (lambda t: rename_column(t, "n", "_found"), "is reserved"),
        (lambda t: rename_column(t, "s", "x"), "named by 'asset.partitions'"),
        (lambda t: drop_columns(t, ["s"]), "named by 'asset.partitions'"),
        (lambda t: modify_columns(t, [Column("n", "SMALLINT")]), "column n is INT and cannot become SMALLINT"),
        (lambda t: modify_columns(t, [Column("n", "STRING")]), "column n is INT and cannot become STRING"),
        (lambda t: modify_columns(t, [Column("n", "BIGINT", nullable=False)]), "column n may hold nulls"),
        (lambda t: modify_columns(t, [Column("x", "BIGINT")]), "there is no column x"),
    ],
)
def test_what_a_column_cannot_become_is_refused_by_its_name(change, what):
    with pytest.raises(StatementRefused, match=what):
        change(table({"asset.partitions": "day(s)"}))


def test_a_key_column_is_not_retyped_where_that_would_send_its_rows_elsewhere():
    before = created(TableDescriptor("db.t", (Column("k", "INT"), Column("c", "VARCHAR(3)")), ("k", "c"), bucket_keys=("k",)), 1)

    with pytest.raises(StatementRefused, match="column k is in the primary key"):
        modify_columns(before, [Column("k", "BIGINT")])
    assert modify_columns(before, [Column("c", "STRING")]).column("c").type == "STRING"


def test_columns_that_the_store_fills_or_compares_cannot_be_dropped():
    versioned = table({"table.merge-engine": "versioned", "table.merge-engine.versioned.ver-column": "n"})
    numbered = table({"auto-increment.fields": "n"})
    partitioned = created(TableDescriptor("db.l", (Column("a", "INT"), Column("ds", "STRING")), partition_keys=("ds",)), 1)

    with pytest.raises(StatementRefused, match="column n is the version column"):
        drop_columns(versioned, ["n"])
    with pytest.raises(StatementRefused, match="column n is the auto-increment column"):
        drop_columns(numbered, ["n"])
    with pytest.raises(StatementRefused, match="column ds is the partition column"):
        drop_columns(partitioned, ["ds"])
    with pytest.raises(StatementRefused, match="needs a column"):
        drop_columns(created(TableDescriptor("db.l", (Column("a", "INT"),)), 1), ["a"])


def test_a_tiered_column_is_widened_only_where_the_lake_holds_the_wider_values_anyway():
    columns = (Column("k", "INT"), Column("n", "INT"), Column("s", "VARCHAR(3)"), Column("at", "TIMESTAMP(3)"))
    before = created(TableDescriptor("db.t", columns, ("k",), options={"table.datalake.enabled": "true"}), 1)

    with pytest.raises(StatementRefused, match=r"column n is INT in the lake.*Add a column of type BIGINT"):
        modify_columns(before, [Column("n", "BIGINT")])
    assert modify_columns(before, [Column("s", "STRING"), Column("at", "TIMESTAMP(6)")]).column("at").type == "TIMESTAMP(6)"


def test_a_change_made_from_older_columns_is_not_applied():
    before = table()
    after = altered(before, drop_columns(before, ["n"]), next_field_id=5)

    with pytest.raises(TableAltered, match=r"db\.t was altered"):
        altered(after, add_columns(before, [Column("x", "INT")]), next_field_id=5)


@pytest.mark.parametrize(
    "wanted",
    [
        lambda t: replace(t, columns=(*t.columns[1:], t.columns[0])),
        lambda t: replace(t, columns=(t.columns[0], t.columns[1], Column("x", "INT"), *t.columns[2:])),
        lambda t: replace(t, primary_key=("k",)),
        lambda t: replace(t, bucket_keys=("k",)),
        lambda t: replace(t, options={"table.merge-engine": "first_row"}),
        lambda t: replace(t, options={}),
    ],
)
def test_a_descriptor_that_no_alter_table_makes_is_refused(wanted):
    before = table({"table.changelog.image": "wal"})

    with pytest.raises((StatementRefused, InvalidOption)):
        altered(before, wanted(before), next_field_id=5)


def test_freshness_is_set_where_the_table_is_tiered_or_was():
    plain, paused = table(), table({"table.datalake.enabled": "true", "table.datalake.freshness": "10s"})

    with pytest.raises(InvalidOption, match=r"freshness has no effect without table\.datalake\.enabled"):
        altered(plain, set_options(plain, {"table.datalake.freshness": "5s"}), next_field_id=5)
    paused = altered(paused, set_options(paused, {"table.datalake.enabled": "false"}), next_field_id=5)
    assert altered(paused, set_options(paused, {"table.datalake.freshness": "5s"}), next_field_id=5).options == {
        "table.datalake.enabled": "false",
        "table.datalake.freshness": "5s",
    }


def test_only_alterable_options_change_and_the_number_of_buckets_is_one_of_them():
    assert set_options(table(), {"table.datalake.freshness": "5s", "asset.owner": "x"}).options["table.datalake.freshness"] == "5s"
    assert set_options(table(), {"bucket.num": "7"}).n_buckets == 7
    with pytest.raises(InvalidOption, match=r"table.merge-engine is fixed.*Options that may change: .*table.log.ttl"):
        set_options(table(), {"table.merge-engine": "aggregation"})
    with pytest.raises(InvalidOption, match=r"bucket\.num = '0' is out of range"):
        set_options(table(), {"bucket.num": "0"})


CHAINS = [
    ("TINYINT", "SMALLINT", "INT", "BIGINT"),
    ("FLOAT", "DOUBLE"),
    ("DECIMAL(4, 2)", "DECIMAL(6, 2)", "DECIMAL(38, 2)"),
    ("CHAR(3)", "CHAR(4)", "VARCHAR(4)", "VARCHAR(5)", "STRING"),
    ("CHAR(3)", "VARCHAR(3)", "VARCHAR(4)"),
    ("BINARY(3)", "VARBINARY(9)", "BYTES"),
    ("TIMESTAMP(0)", "TIMESTAMP(3)", "TIMESTAMP(6)"),
    ("TIMESTAMP_LTZ(0)", "TIMESTAMP_LTZ(6)"),
    ("TIME", "TIME(3)"),
]
"""Types that widen from left to right."""
TYPES = sorted({kind for chain in CHAINS for kind in chain} | {"BOOLEAN", "DATE", "DECIMAL(6, 3)"})


@pytest.mark.parametrize("old", TYPES)
def test_exactly_the_types_further_up_a_chain_are_wider(old):
    wider = {old}
    for _ in CHAINS:
        wider |= {kind for chain in CHAINS for i, kind in enumerate(chain) if wider & set(chain[:i])}

    assert {new for new in TYPES if is_widening(old, new)} == wider


@pytest.mark.parametrize(
    ("old", "new", "values"),
    [
        ("TINYINT", "BIGINT", [-128, 127, None]),
        ("SMALLINT", "INT", [-32768, 32767, None]),
        ("INT", "BIGINT", [-(2**31), 2**31 - 1, None]),
        ("FLOAT", "DOUBLE", [0.5, float("inf"), -0.0, None]),
        ("DECIMAL(4, 2)", "DECIMAL(38, 2)", [Decimal("-99.99"), None]),
        ("VARCHAR(3)", "STRING", ["abc", None]),
        ("TIMESTAMP(3)", "TIMESTAMP(6)", [0, -(2**51), 2**52, None]),
    ],
)
def test_a_wider_type_holds_each_value_and_gives_it_back(old, new, values):
    stored = pa.array(values, arrow_type(old))

    wide = fitted(stored, arrow_type(new), where="c")

    assert wide.type == arrow_type(new)
    if not pa.types.is_timestamp(stored.type):
        assert wide.to_pylist() == values
    assert fitted(wide, arrow_type(old), where="c").equals(stored)


@pytest.mark.parametrize(
    ("value", "stored", "known"), [(2**40, "BIGINT", "INT"), (0.1, "DOUBLE", "FLOAT"), (2**62, "TIMESTAMP(3)", "TIMESTAMP(6)")]
)
def test_a_value_that_a_type_cannot_hold_is_an_error_and_no_other_value(value, stored, known):
    with pytest.raises(SchemaMismatch, match=r"does not fit .*table a\.t, column c"):
        fitted(pa.array([value], arrow_type(stored)), arrow_type(known), where="table a.t, column c")
