"""Contract: partitions are created by rows, by statements and by time; a dropped one is gone for its readers, and its successor another."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from storage_engine.errors import AlreadyExists, InvalidPartition, PartitionChanged, StatementRefused, UnknownTable
from storage_engine.schema.descriptor import TableBucket


@pytest.fixture
def days(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT, day STRING) PARTITIONED BY (day)")
    return store.table(f"{db}.t")


@pytest.mark.needs("add_partition")
def test_a_partition_is_added_by_a_statement_and_is_empty(store, days):
    store.execute(f"ALTER TABLE {days.name} ADD PARTITION (day = '2017-01-01')")
    store.execute(f"ALTER TABLE {days.name} ADD IF NOT EXISTS PARTITION (day = '2017-01-01')")

    assert days.partitions() == ["2017-01-01"]
    assert days.scan().read_all().num_rows == 0
    with pytest.raises(AlreadyExists, match="has a partition 2017-01-01"):
        store.execute(f"ALTER TABLE {days.name} ADD PARTITION (day = '2017-01-01')")


@pytest.mark.needs("add_partition")
@pytest.mark.parametrize(
    ("partition", "error", "message"),
    [
        ("day = '__x'", InvalidPartition, "cannot name a partition"),
        ("day = 'a/b'", InvalidPartition, "cannot name a partition"),
        ("day = ''", InvalidPartition, "cannot name a partition"),
        (f"day = '{'d' * 201}'", InvalidPartition, "1 to 200 letters"),
        ("x = '1'", StatementRefused, r"Write \(day = 'value'\)"),
        ("day = 'a', x = '1'", StatementRefused, r"Write \(day = 'value'\)"),
    ],
)
def test_a_partition_that_can_hold_no_row_is_not_added(store, days, partition, error, message):
    with pytest.raises(error, match=message):
        store.execute(f"ALTER TABLE {days.name} ADD PARTITION ({partition})")
    assert days.partitions() == []


@pytest.mark.needs("add_partition")
def test_a_partition_of_a_typed_column_is_a_value_of_its_type(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT, day INT) PARTITIONED BY (day)")

    with pytest.raises(InvalidPartition, match="'x' is not a int32"):
        store.execute(f"ALTER TABLE {db}.t ADD PARTITION (day = 'x')")
    store.execute(f"ALTER TABLE {db}.t ADD PARTITION (day = 7)")

    assert store.table(f"{db}.t").partitions() == ["7"]


@pytest.mark.needs("consumers")
def test_a_date_that_a_condition_writes_in_another_form_finds_its_partition_and_no_consumer_passes_over_it(store, db):
    store.execute(f"CREATE TABLE {db}.dated (x BIGINT, day DATE) PARTITIONED BY (day)")
    dated = store.table(f"{db}.dated")
    dated.append({"x": [1, 2], "day": [date(2024, 1, 5), date(2024, 1, 6)]})

    for i, where in enumerate(("day = '2024-01-05'", "day = '20240105'", "day IN ('2024-W01-5')")):
        assert dated.scan(["x"], where).read_all()["x"].to_pylist() == [1]
        assert dated.consumer(f"c{i}").poll(where=where)["x"].to_pylist() == [1]


@pytest.mark.needs("add_partition")
def test_a_table_without_partitions_takes_none(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT)")
    with pytest.raises(StatementRefused, match="has no partitions"):
        store.execute(f"ALTER TABLE {db}.t ADD PARTITION (x = '1')")
    with pytest.raises(InvalidPartition, match="has no partitions"):
        store.backend.create_partition(f"{db}.t", "1", if_not_exists=False)
    with pytest.raises(UnknownTable):
        store.backend.create_partition(f"{db}.none", "1", if_not_exists=False)


def test_rows_create_no_partition_where_the_table_says_so(store, db):
    store.execute(
        f"CREATE TABLE {db}.t (x BIGINT, day STRING) PARTITIONED BY (day) WITH ('client.writer.dynamic-create-partition.enabled' = 'false')"
    )
    table = store.table(f"{db}.t")

    with pytest.raises(InvalidPartition, match=r"rows do not create one.*ALTER TABLE .* ADD PARTITION \(day = 'd1'\)"):
        table.append({"x": [1], "day": ["d1"]})
    store.execute(f"ALTER TABLE {db}.t ADD PARTITION (day = 'd1')")
    table.append({"x": [1], "day": ["d1"]})

    assert table.partitions() == ["d1"]


@pytest.mark.needs("auto_partition")
def test_partitions_of_the_present_and_the_next_day_are_there_after_creation(store, db):
    store.execute(
        f"CREATE TABLE {db}.t (x BIGINT, day STRING) PARTITIONED BY (day) WITH ('table.auto-partition.enabled' = 'true', "
        "'table.auto-partition.time-unit' = 'YEAR', 'table.auto-partition.time-zone' = 'UTC')"
    )
    year = datetime.now(UTC).year

    assert store.table(f"{db}.t").partitions() == [str(year), str(year + 1)]


@pytest.mark.needs("late_rows")
def test_a_row_for_a_partition_past_keeping_is_refused_or_dropped_and_counted_by_option(store, db):
    auto = "'table.auto-partition.enabled' = 'true', 'table.auto-partition.time-unit' = 'YEAR'"
    store.execute(
        f"CREATE TABLE {db}.refuses (x BIGINT, y STRING) PARTITIONED BY (y) WITH ({auto});"
        f"CREATE TABLE {db}.drops (x BIGINT, y STRING) PARTITIONED BY (y) WITH ({auto}, 'table.auto-partition.late-rows' = 'drop')"
    )
    late = {"x": [1, 2], "y": ["1999", str(datetime.now(UTC).year)]}

    with pytest.raises(InvalidPartition, match=r"1999 .* is past keeping"):
        store.table(f"{db}.refuses").append(late)
    result = store.table(f"{db}.drops").append(late)

    assert store.table(f"{db}.refuses").count() == 0
    assert (store.table(f"{db}.drops").count(), result.n_late_rows, store.backend.late_rows(f"{db}.drops")) == (1, 1, 1)


@pytest.mark.needs("drop_partition")
def test_a_delete_in_a_partition_that_is_not_there_creates_none(store, db):
    store.execute(f"CREATE TABLE {db}.t (id BIGINT, day STRING, PRIMARY KEY (id, day) NOT ENFORCED) PARTITIONED BY (day)")

    store.table(f"{db}.t").delete({"id": [1], "day": ["d1"]})

    assert store.table(f"{db}.t").partitions() == []


@pytest.mark.needs("drop_partition", "add_partition")
def test_a_partition_created_again_is_another_one_and_begins_at_offset_0(store, days):
    days.append({"x": [1, 2, 3], "day": ["a"] * 3})
    first = store.backend.partitions(days.name)["a"]

    store.execute(f"ALTER TABLE {days.name} DROP PARTITION (day = 'a')")
    store.execute(f"ALTER TABLE {days.name} ADD PARTITION (day = 'a')")
    days.append({"x": [9], "day": ["a"]})

    assert store.backend.partitions(days.name)["a"] != first
    assert days.offsets() == {TableBucket("a", 0): 1}
    assert days.scan(columns=["x"]).read_all()["x"].to_pylist() == [9]


@pytest.mark.needs("drop_partition")
def test_a_scan_whose_partition_is_dropped_before_it_is_read_ends_with_an_error_never_with_other_rows(store, days):
    days.append({"x": [1, 2, 3], "day": ["a"] * 3})
    gone, replaced = days.scan(), days.scan()

    store.execute(f"ALTER TABLE {days.name} DROP PARTITION (day = 'a')")
    with pytest.raises(PartitionChanged, match=r"partition a of .* was dropped while it was read"):
        gone.read_all()
    days.append({"x": [7, 8, 9, 10], "day": ["a"] * 4})
    with pytest.raises(PartitionChanged, match=r"partition a of .* was dropped and created again"):
        replaced.read_all()

    assert days.scan(columns=["x"]).read_all()["x"].to_pylist() == [7, 8, 9, 10]


@pytest.mark.needs("drop_partition")
def test_a_scan_that_has_begun_reads_its_rows_to_the_end_although_their_partition_is_dropped(shared, store, days):
    for start in range(0, 4000, 100):
        days.append({"x": list(range(start, start + 100)), "day": ["a"] * 100})
    running = iter(days.scan(columns=["x"]))
    first = next(running)

    shared.peer().execute(f"ALTER TABLE {days.name} DROP PARTITION (day = 'a')")
    days.append({"x": [-1] * 5000, "day": ["a"] * 5000})
    rest = [x for batch in running for x in batch["x"].to_pylist()]

    assert first["x"].to_pylist() + rest == list(range(4000))


@pytest.mark.needs("drop_partition", "consumers")
def test_a_consumer_forgets_a_dropped_partition_and_reads_its_successor_from_the_beginning(store, days):
    days.append({"x": [1, 2, 3], "day": ["a", "a", "b"]})
    consumer = days.consumer("c")
    consumer.poll()
    consumer.commit()

    store.execute(f"ALTER TABLE {days.name} DROP PARTITION (day = 'a')")
    days.append({"x": [4, 5], "day": ["a", "b"]})
    rows = consumer.poll()
    consumer.commit()

    assert sorted(rows["x"].to_pylist()) == [4, 5]
    assert (consumer.poll(), consumer.lag()) == (None, 0)
    assert store.progress("consumer:")[f"consumer:c:{days.name}"].offsets == {days.name: {TableBucket("a", 0): 1, TableBucket("b", 0): 2}}


@pytest.mark.needs("drop_partition", "consumers")
def test_a_commit_of_rows_read_before_the_drop_never_passes_over_rows_of_the_successor(store, days):
    days.append({"x": [1, 2, 3], "day": ["a", "a", "b"]})
    consumer = days.consumer("c")
    assert consumer.poll().num_rows == 3

    store.execute(f"ALTER TABLE {days.name} DROP PARTITION (day = 'a')")
    days.append({"x": [7, 8], "day": ["a", "a"]})
    consumer.commit()

    again = days.consumer("c")
    assert again.poll()["x"].to_pylist() == [7, 8]
    assert consumer.poll()["x"].to_pylist() == [7, 8]


@pytest.mark.needs("drop_partition", "consumers")
def test_offsets_of_a_partition_that_is_gone_are_not_recorded(store, days):
    days.append({"x": [1, 2], "day": ["a", "b"]})
    consumer = days.consumer("c")
    consumer.poll()

    store.execute(f"ALTER TABLE {days.name} DROP PARTITION (day = 'a')")
    consumer.commit()

    assert store.progress("consumer:")[f"consumer:c:{days.name}"].offsets == {days.name: {TableBucket("b", 0): 1}}


@pytest.mark.needs("consumers")
def test_a_table_made_again_under_its_name_is_read_from_the_beginning(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT)")
    store.table(f"{db}.t").append({"x": [1, 2, 3]})
    consumer = store.table(f"{db}.t").consumer("c")
    consumer.poll()
    consumer.commit()

    store.execute(f"DROP TABLE {db}.t; CREATE TABLE {db}.t (x BIGINT)")
    store.table(f"{db}.t").append({"x": [9]})

    assert store.table(f"{db}.t").consumer("c").poll()["x"].to_pylist() == [9]


@pytest.mark.needs("statistics_of_buckets")
def test_show_partitions_tells_rows_bytes_and_offsets_of_each_partition(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT, day STRING) PARTITIONED BY (day) WITH ('bucket.num' = '2', 'bucket.key' = 'x')")
    store.table(f"{db}.t").append({"x": list(range(10)), "day": ["a"] * 10})
    store.execute(f"ALTER TABLE {db}.t ADD PARTITION (day = 'b')")

    n_rows = sum(row["end_offset"] - row["start_offset"] for row in store.backend.bucket_statistics(f"{db}.t").to_pylist())
    (shown,) = store.execute(f"SHOW PARTITIONS {db}.t")
    first, second = shown.rows.to_pylist()

    assert (first["partition"], first["rows"], first["buckets"], first["start_offsets"]) == ("a", 10, [0, 1], [0, 0])
    assert sum(first["end_offsets"]) == n_rows == 10
    assert first["bytes"] > 0
    assert abs((datetime.now(UTC) - first["last_commit"]).total_seconds()) < 60
    assert (second["partition"], second["rows"], second["bytes"], second["last_commit"]) == ("b", 0, 0, None)
