"""Fluss mapping: a table is described to Fluss so that it comes back as it was written; what Fluss cannot hold is refused by name."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest

import storage_engine
from storage_engine import Column, Progress, TableDescriptor, WriteId, WriteOp
from storage_engine.api import CAPABILITIES, CommitRequest
from storage_engine.errors import InvalidOption, SchemaMismatch, UnsupportedByBackend, UserError
from storage_engine.fluss.features import FEATURES, REMEDIES, require_commit
from storage_engine.fluss.mapping import definition_of, descriptor_of, path_of
from storage_engine.fluss.writes import ARROW_BYTES, ROW_OVERHEAD, cut, planned_rows
from storage_engine.schema.descriptor import Computed

URL = "fluss://h:1"
ORDERS = TableDescriptor(
    "shop.orders",
    (
        Column("day", "STRING", nullable=False),
        Column("id", "BIGINT", nullable=False),
        Column("amount", "DECIMAL(12, 2)", comment="money"),
        Column("seen", "TIMESTAMP_LTZ(3)"),
    ),
    primary_key=("day", "id"),
    partition_keys=("day",),
    bucket_keys=("id",),
    n_buckets=4,
    options={"asset.owner": "team:trading", "table.delete.behavior": "disable", "bucket.num": "4"},
    comment="Orders",
)


def stored(definition, **changes):
    """A table as the cluster describes it."""
    schema = SimpleNamespace(get_columns=list, get_auto_increment_columns=list)
    members = {
        "get_custom_properties": lambda: dict(definition.custom_properties),
        "get_schema": lambda: schema,
        "table_id": 7,
        "schema_id": 1,
    }
    return SimpleNamespace(**{**members, **changes})


def test_a_table_comes_back_as_it_was_written():
    definition = definition_of(ORDERS, backend=URL)

    back = descriptor_of("shop.orders", stored(definition))

    assert [(c.name, c.type, c.nullable, c.comment) for c in back.columns] == [
        (c.name, c.type, c.nullable, c.comment) for c in definition_columns(ORDERS)
    ]
    assert (back.primary_key, back.partition_keys, back.bucket_keys, back.n_buckets) == (("day", "id"), ("day",), ("id",), 4)
    assert (back.comment, back.options["asset.owner"], back.table_id, back.schema_id) == ("Orders", "team:trading", 7, 1)


def definition_columns(descriptor):
    from storage_engine.schema.validate import validate

    return validate(descriptor).columns


def test_fluss_gets_its_own_options_in_capitals_and_free_ones_as_custom_properties():
    definition = definition_of(ORDERS, backend=URL)

    assert definition.properties == {"table.delete.behavior": "DISABLE"}
    assert definition.custom_properties["asset.owner"] == "team:trading"
    assert (definition.database, definition.table, definition.n_buckets) == ("shop", "orders", 4)


def test_a_table_made_by_others_is_read_from_its_columns_and_keys():
    schema = SimpleNamespace(
        get_columns=lambda: [("id", "bigint NOT NULL"), ("d", "decimal(12,2)"), ("ts", "timestamp_ltz"), ("tags", "array<string>")],
        get_auto_increment_columns=list,
    )
    info = SimpleNamespace(
        get_custom_properties=dict,
        get_properties=lambda: {"table.replication.factor": "1"},
        get_schema=lambda: schema,
        get_primary_keys=lambda: ["id"],
        get_partition_keys=list,
        get_bucket_keys=lambda: ["id"],
        num_buckets=3,
        comment=None,
        table_id=1,
        schema_id=1,
    )

    found = descriptor_of("a.t", info)

    assert [(c.name, c.nullable) for c in found.columns] == [("id", False), ("d", True), ("ts", True), ("tags", True)]
    assert [c.arrow.type for c in found.columns[:3]] == [pa.int64(), pa.decimal128(12, 2), pa.timestamp("us", "UTC")]
    assert (found.primary_key, found.n_buckets) == (("id",), 3)
    with pytest.raises(UserError, match="ARRAY"):
        found.columns[3].arrow  # noqa: B018


@pytest.mark.parametrize(
    ("feature", "options"),
    [
        ("aggregation", {"table.merge-engine": "aggregation", "fields.amount.agg": "sum"}),
        ("tiering", {"table.datalake.enabled": "true"}),
    ],
)
def test_a_table_that_fluss_would_silently_make_otherwise_is_refused(feature, options):
    from dataclasses import replace

    with pytest.raises(UnsupportedByBackend, match=rf"lacks {feature}\b.*{URL}"):
        definition_of(replace(ORDERS, options=options), backend=URL)


def test_computed_columns_are_refused_because_only_flink_would_see_them():
    descriptor = TableDescriptor("shop.orders", (Column("id", "BIGINT"),), computed=(Computed("twice", "id * 2", 1),))
    with pytest.raises(UnsupportedByBackend, match=rf"lacks computed_columns\b.*{URL}"):
        definition_of(descriptor, backend=URL)


def test_an_option_unknown_to_the_store_is_refused_before_fluss_sees_it():
    from dataclasses import replace

    with pytest.raises(InvalidOption, match=r"table\.nope"):
        definition_of(replace(ORDERS, options={"table.nope": "1"}), backend=URL)


@pytest.mark.parametrize("name", ["orders", ".orders", "shop."])
def test_a_name_without_database_or_table_is_refused(name):
    with pytest.raises(UserError, match="database"):
        path_of(name)


def test_every_capability_is_either_offered_or_has_a_remedy():
    assert CAPABILITIES >= FEATURES
    assert set(REMEDIES) == CAPABILITIES - FEATURES


ROW = WriteOp("a.t", "append", pa.table({"x": [1]}))


@pytest.mark.parametrize(
    ("feature", "request_"),
    [
        ("transactions", CommitRequest((ROW, WriteOp("a.u", "append", ROW.rows)))),
        ("transactions", CommitRequest((ROW, ROW))),
        ("transactions", CommitRequest((ROW,), (Progress("job:j", {}),))),
        ("consumers", CommitRequest((), (Progress("consumer:c:a.t", {}),))),
        ("jobs", CommitRequest((), (Progress("job:j", {}),))),
        ("idempotent_writes", CommitRequest((ROW,), (), WriteId("w", 1))),
    ],
)
def test_a_commit_that_fluss_cannot_keep_whole_is_refused_by_name(feature, request_):
    with pytest.raises(UnsupportedByBackend, match=rf"lacks {feature}\b"):
        require_commit(request_, backend=URL)


def test_one_plain_write_needs_nothing_that_fluss_lacks():
    require_commit(CommitRequest((ROW,)), backend=URL)


def test_an_auto_increment_column_is_left_to_the_server():
    mapping = TableDescriptor(
        "a.m",
        (Column("k", "STRING", nullable=False), Column("id", "BIGINT")),
        primary_key=("k",),
        options={"auto-increment.fields": "id"},
    )

    rows, columns = planned_rows(mapping, WriteOp("a.m", "upsert", pa.table({"k": ["a"]})))

    assert (rows.column_names, columns) == (["k"], ("k",))


def test_a_write_of_the_wrong_kind_or_with_wrong_rows_is_refused_before_it_is_sent():
    with pytest.raises(UserError, match=r"upsert\(\)"):
        planned_rows(ORDERS, WriteOp("shop.orders", "append", pa.table({"id": [1]})))
    with pytest.raises(SchemaMismatch, match="wrong"):
        planned_rows(ORDERS, WriteOp("shop.orders", "upsert", pa.table({"wrong": [1]})))


def test_rows_are_cut_into_batches_below_the_bound_in_their_order():
    rows = pa.table({"x": list(range(1000)), "s": ["y" * 5000] * 1000})

    batches = list(cut(rows, ARROW_BYTES // 4))

    assert pa.Table.from_batches(batches) == rows.combine_chunks()
    assert len(batches) > 4
    assert all(batch.nbytes + batch.num_rows * ROW_OVERHEAD <= ARROW_BYTES // 4 for batch in batches)


def test_a_row_beyond_the_bound_is_a_batch_of_its_own():
    assert [batch.num_rows for batch in cut(pa.table({"s": ["a" * 100, "b" * 100]}), 10)] == [1, 1]


@pytest.mark.parametrize("url", ["fluss://", "fluss://host", "fluss://h:x"])
def test_an_address_of_no_cluster_is_refused(url):
    with pytest.raises(UserError, match="fluss"):
        storage_engine.connect(url)
