"""LakeTable on plain Arrow data: what it commits is what another engine reads, once, and it notices who else wrote."""

from __future__ import annotations

import datetime as dt
import json
import resource
from decimal import Decimal

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake

from storage_engine.errors import InvalidPartition, LakeChanged, ProgressConflict, WriteFailed
from storage_engine.lake.columns import lake_schema, to_lake
from storage_engine.lake.delta import LakeTable, Target, last_record
from storage_engine.lake.netting import net_changes
from storage_engine.schema.descriptor import Column, TableBucket, TableDescriptor
from storage_engine.schema.validate import validate

ORDERS = TableDescriptor(
    name="shop.orders",
    columns=(
        Column("order_id", "BIGINT", nullable=False),
        Column("day", "STRING", nullable=False),
        Column("amount", "DECIMAL(12, 2)", comment="paid, in euro"),
        Column("placed_at", "TIMESTAMP(3)"),
        Column("paid_at", "TIMESTAMP_LTZ(3)"),
    ),
    primary_key=("order_id", "day"),
    partition_keys=("day",),
    bucket_keys=("order_id",),
    comment="Orders",
)
ORDERS = validate(ORDERS)
EVENTS = validate(TableDescriptor(name="shop.events", columns=(Column("user_id", "INT"), Column("note", "STRING"))))
BUCKET = TableBucket("", 0)


def order(order_id: int, day: str = "2026-01-01", amount: str = "1.00") -> dict:
    at = dt.datetime.fromisoformat("2026-01-01T12:30:00.005")
    return {"order_id": order_id, "day": day, "amount": Decimal(amount), "placed_at": at, "paid_at": at.replace(tzinfo=dt.UTC)}


def append_events(table: LakeTable, changelog, values: list[int], version: int, epoch: int = 1):
    start = table.record.offsets.get(BUCKET, 0)
    schema = table.write_schema(EVENTS)
    rows = to_lake(changelog(EVENTS.arrow_schema, [("+A", {"user_id": v, "note": f"n{v}"}) for v in values], start), schema)
    return table.append(table.record, Target(version, {BUCKET: start + len(values)}, epoch), rows.to_reader)


def merge_orders(table: LakeTable, changelog, changes: list[tuple[str, dict]], version: int):
    net = net_changes(changelog(ORDERS.arrow_schema, changes), ORDERS.primary_key)
    return table.merge(table.record, Target(version, {BUCKET: version * 100}, 1), ORDERS, net)


def test_an_appended_row_reads_back_from_duckdb_with_its_place_in_the_store(tmp_path, changelog, lake_rows):
    table = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)

    append_events(table, changelog, [7, 8], version=5)

    assert lake_rows(tmp_path / "events", "user_id, note, __bucket, __offset, epoch_ms(__timestamp)") == [
        (7, "n7", 0, 0, 1_700_000_000_000),
        (8, "n8", 0, 1, 1_700_000_000_001),
    ]


def test_a_reopened_table_knows_what_it_covers(tmp_path, changelog):
    table = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)
    append_events(table, changelog, [1], version=5)
    append_events(table, changelog, [2, 3], version=9, epoch=4)

    record = LakeTable.open(tmp_path / "events", "lake-1").record

    assert (record.version, record.offsets, record.epoch, record.kind) == (9, {BUCKET: 3}, 4, "append")
    assert DeltaTable(str(tmp_path / "events")).transaction_version("flashlake:lake-1") == 9


def test_net_changes_insert_update_and_delete_by_key_in_one_commit(tmp_path, changelog, lake_rows):
    table = LakeTable.create(tmp_path / "orders", ORDERS, "lake-1", epoch=1)
    merge_orders(table, changelog, [("+I", order(1)), ("+I", order(2)), ("+I", order(3, "2026-01-02"))], version=1)

    merge_orders(
        table,
        changelog,
        [("-U", order(1)), ("+U", order(1, amount="9.50")), ("-D", order(2)), ("+I", order(4)), ("+I", order(5)), ("-D", order(5))],
        version=2,
    )

    assert lake_rows(tmp_path / "orders", "order_id, day, amount") == [
        (1, "2026-01-01", Decimal("9.50")),
        (3, "2026-01-02", Decimal("1.00")),
        (4, "2026-01-01", Decimal("1.00")),
    ]
    assert table.delta_version == 2


def test_a_merge_leaves_files_of_untouched_partitions_alone(tmp_path, changelog):
    table = LakeTable.create(tmp_path / "orders", ORDERS, "lake-1", epoch=1)
    merge_orders(table, changelog, [("+I", order(1)), ("+I", order(3, "2026-01-02"))], version=1)
    before = {uri for uri in DeltaTable(str(tmp_path / "orders")).file_uris() if "2026-01-02" in uri}

    merge_orders(table, changelog, [("-U", order(1)), ("+U", order(1, amount="2.00"))], version=2)

    assert {uri for uri in DeltaTable(str(tmp_path / "orders")).file_uris() if "2026-01-02" in uri} == before


def test_a_key_written_again_after_its_partition_was_dropped_in_the_store_is_one_row(tmp_path, changelog, lake_rows):
    table = LakeTable.create(tmp_path / "orders", ORDERS, "lake-1", epoch=1)
    merge_orders(table, changelog, [("+I", order(1)), ("+I", order(2))], version=1)
    again = changelog(ORDERS.arrow_schema, [("+I", order(1, amount="7.00"))], partition="2026-01-01")

    table.merge(table.record, Target(9, {BUCKET: 1}, 1, detached=("2026-01-01",)), ORDERS, net_changes(again, ORDERS.primary_key))

    assert lake_rows(tmp_path / "orders", "order_id, amount") == [(1, Decimal("7.00")), (2, Decimal("1.00"))]
    assert LakeTable.open(tmp_path / "orders", "lake-1").record.detached == ("2026-01-01",)


def test_changes_that_cancel_out_still_record_how_far_the_table_is(tmp_path, changelog):
    table = LakeTable.create(tmp_path / "orders", ORDERS, "lake-1", epoch=1)

    record = merge_orders(table, changelog, [("+I", order(1)), ("-D", order(1))], version=3)

    assert record.version == 3
    assert LakeTable.open(tmp_path / "orders", "lake-1").record.version == 3


@pytest.mark.parametrize("partition_type", ["STRING", "INT", "BIGINT", "DATE"])
def test_a_merge_finds_its_rows_under_every_partition_type(tmp_path, changelog, lake_rows, partition_type):
    value = {"STRING": "it-s", "INT": 7, "BIGINT": 2**40, "DATE": dt.date(2026, 5, 1)}[partition_type]
    descriptor = TableDescriptor(
        name="a.b",
        columns=(Column("k", "STRING", nullable=False), Column("p", partition_type, nullable=False), Column("v", "INT")),
        primary_key=("k", "p"),
        partition_keys=("p",),
    )
    descriptor = validate(descriptor)
    table = LakeTable.create(tmp_path / "t", descriptor, "lake-1", epoch=1)
    schema = descriptor.arrow_schema
    first = net_changes(changelog(schema, [("+I", {"k": "a", "p": value, "v": 1})]), ["k", "p"])
    table.merge(table.record, Target(1, {BUCKET: 1}, 1), descriptor, first)

    changes = [("-U", {"k": "a", "p": value, "v": 1}), ("+U", {"k": "a", "p": value, "v": 2})]
    table.merge(table.record, Target(2, {BUCKET: 3}, 1), descriptor, net_changes(changelog(schema, changes), ["k", "p"]))

    assert lake_rows(tmp_path / "t", "k, p, v") == [("a", value, 2)]


def test_a_partition_column_that_is_a_timestamp_is_refused():
    descriptor = TableDescriptor(name="a.b", columns=(Column("at", "TIMESTAMP(3)"), Column("v", "INT")), partition_keys=("at",))

    with pytest.raises(InvalidPartition, match="column at"):
        lake_schema(descriptor)


def test_duckdb_and_delta_rs_read_the_same_values_of_every_type(tmp_path, changelog, duck):
    names = "BOOLEAN|TINYINT|SMALLINT|INT|BIGINT|FLOAT|DOUBLE|STRING|BYTES|DATE|TIME(3)|DECIMAL(38,9)".split("|")
    names += ["TIMESTAMP(3)", "TIMESTAMP(6)", "TIMESTAMP_LTZ(3)"]
    descriptor = validate(TableDescriptor(name="a.types", columns=tuple(Column(f"c{i}", name) for i, name in enumerate(names))))
    at = dt.datetime.fromisoformat("1969-12-31T23:59:59.999")
    values = [
        True, -8, -300, 2**31 - 1, -(2**63), 0.5, 1e300, "ü", b"\x00\xff", dt.date(1, 1, 1), dt.time(23, 59, 59, 999000),
        Decimal("12345678901234567890123456789.123456789"), at, at.replace(microsecond=999999), at.replace(tzinfo=dt.UTC),
    ]  # fmt: skip
    rows = [{f"c{i}": value for i, value in enumerate(values)}, {f"c{i}": None for i in range(len(values))}]
    table = LakeTable.create(tmp_path / "t", descriptor, "lake-1", epoch=1)
    schema = table.write_schema(descriptor)
    source = to_lake(changelog(descriptor.arrow_schema, [("+A", row) for row in rows]), schema)
    table.append(table.record, Target(1, {BUCKET: 2}, 1), source.to_reader)

    by_duckdb = duck.execute(f"SELECT * FROM delta_scan('{tmp_path / 't'}') ORDER BY __offset").to_arrow_table()
    by_delta_rs = pa.table(
        QueryBuilder().register("t", DeltaTable(str(tmp_path / "t"))).execute("SELECT * FROM t ORDER BY __offset").read_all()
    )

    expected = source.to_pylist()
    assert by_duckdb.to_pylist() == expected
    assert by_delta_rs.cast(schema).to_pylist() == expected


def test_an_engine_that_filters_on_a_timestamp_skips_no_file_that_matters(tmp_path, changelog, duck):
    table = LakeTable.create(tmp_path / "orders", ORDERS, "lake-1", epoch=1)
    merge_orders(table, changelog, [("+I", order(1))], version=1)

    count = f"SELECT count(*) FROM delta_scan('{tmp_path / 'orders'}') WHERE placed_at"
    answers = [duck.execute(f"{count} {test} TIMESTAMP '2026-01-01 12:30:00.005'").fetchone() for test in ("=", ">=", "<", ">")]

    assert answers == [(1,), (1,), (0,), (0,)]


# who else writes


def test_a_second_worker_that_planned_from_the_same_offsets_writes_nothing(tmp_path, changelog, lake_rows):
    first = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)
    append_events(first, changelog, [1], version=5)
    second = LakeTable.open(tmp_path / "events", "lake-1")
    stale = second.record
    append_events(first, changelog, [2], version=6)

    with pytest.raises(ProgressConflict, match="store version 6"):
        second.append(stale, Target(6, {BUCKET: 2}, 1), second.write_schema(EVENTS).empty_table().to_reader)

    assert lake_rows(tmp_path / "events", "user_id") == [(1,), (2,)]


def test_a_worker_of_an_older_epoch_writes_nothing(tmp_path, changelog):
    table = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)
    append_events(table, changelog, [1], version=5, epoch=3)

    with pytest.raises(ProgressConflict, match="epoch 3"):
        append_events(table, changelog, [2], version=6, epoch=2)


def test_rows_changed_by_somebody_else_are_reported_with_who_and_where(tmp_path, changelog):
    table = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)
    append_events(table, changelog, [1], version=5)
    foreign = table.write_schema(EVENTS).empty_table().to_pylist() or [{name: None for name in table.column_names}]
    write_deltalake(str(tmp_path / "events"), pa.Table.from_pylist(foreign, schema=table.write_schema(EVENTS)), mode="append")

    with pytest.raises(LakeChanged, match=r"Delta version 2 \(WRITE by delta-rs.*the tierer's last version is 1"):
        append_events(table, changelog, [2], version=6)
    with pytest.raises(LakeChanged, match="Delta version 2"):
        LakeTable.open(tmp_path / "events", "lake-1")


def test_a_compaction_by_somebody_else_does_not_stop_tiering(tmp_path, changelog, lake_rows):
    table = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)
    append_events(table, changelog, [1], version=5)
    append_events(table, changelog, [2], version=6)
    DeltaTable(str(tmp_path / "events")).optimize.compact()

    append_events(table, changelog, [3], version=7)

    assert lake_rows(tmp_path / "events", "user_id") == [(1,), (2,), (3,)]
    assert last_record(tmp_path / "events", table.delta_version).version == 7


def test_a_table_of_another_store_is_refused(tmp_path):
    LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)

    with pytest.raises(LakeChanged, match="lake id lake-1, the store expects lake id lake-2"):
        LakeTable.open(tmp_path / "events", "lake-2")


def test_a_log_entry_put_back_behind_our_back_is_noticed(tmp_path, changelog):
    table = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)
    append_events(table, changelog, [1], version=5)
    entry = tmp_path / "events" / "_delta_log" / f"{1:020d}.json"
    lines = [json.loads(line) for line in entry.read_text().splitlines()]
    entry.write_text("\n".join(json.dumps(line) for line in lines if "txn" not in line))
    reopened = LakeTable.open(tmp_path / "events", "lake-1")

    with pytest.raises(LakeChanged, match="app transaction"):
        append_events(reopened, changelog, [2], version=6)


# maintenance


def test_compaction_joins_files_changes_no_row_and_carries_the_record(tmp_path, changelog, lake_rows):
    table = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)
    for version in range(1, 11):
        append_events(table, changelog, [version], version=version)
    before = lake_rows(tmp_path / "events")

    result = table.compact(target_bytes=1 << 20)

    assert (result.n_files_removed, result.n_files_added) == (10, 1)
    assert lake_rows(tmp_path / "events") == before
    assert (table.record.version, table.record.offsets, table.record.kind) == (10, {BUCKET: 10}, "compact")
    entry = (tmp_path / "events" / "_delta_log" / f"{table.delta_version:020d}.json").read_text()
    assert '"dataChange":true' not in entry
    append_events(table, changelog, [11], version=11)
    assert len(lake_rows(tmp_path / "events")) == 11


def test_vacuum_removes_files_of_killed_writers_and_keeps_every_row(tmp_path, changelog, lake_rows):
    table = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)
    append_events(table, changelog, [1], version=1)
    append_events(table, changelog, [2], version=2)
    table.compact(target_bytes=1 << 20)
    (tmp_path / "events" / "part-00000-left-by-a-killed-writer.parquet").write_bytes(b"PAR1")

    removed = table.vacuum(retention_hours=0)

    assert len(removed) == 3
    assert lake_rows(tmp_path / "events", "user_id") == [(1,), (2,)]
    append_events(table, changelog, [3], version=3)
    assert LakeTable.open(tmp_path / "events", "lake-1").record.version == 3


def test_a_column_added_to_the_table_is_null_in_older_rows(tmp_path, changelog, lake_rows):
    table = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)
    append_events(table, changelog, [1], version=1)
    wider = TableDescriptor(name=EVENTS.name, columns=(*EVENTS.columns, Column("place", "STRING", field_id=2)))

    assert table.add_columns(wider)
    assert not table.add_columns(wider)
    schema = table.write_schema(wider)
    rows = to_lake(changelog(wider.arrow_schema, [("+A", {"user_id": 2, "note": "n2", "place": "Utrecht"})], 1), schema)
    table.append(table.record, Target(2, {BUCKET: 2}, 1), rows.to_reader)

    assert lake_rows(tmp_path / "events", "user_id, place") == [(1, None), (2, "Utrecht")]


def test_a_full_disk_is_one_clear_error_and_the_next_write_goes_through(tmp_path, changelog, lake_rows):
    table = LakeTable.create(tmp_path / "events", EVENTS, "lake-1", epoch=1)
    append_events(table, changelog, [1], version=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
    try:
        with pytest.raises(WriteFailed, match="File too large"):
            append_events(table, changelog, list(range(2, 5000)), version=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    append_events(table, changelog, [2], version=2)

    assert lake_rows(tmp_path / "events", "user_id") == [(1,), (2,)]
