"""Contract: a condition leaves out frames that cannot match, on logs and changelogs, and never changes what a scan returns."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from storage_engine.client.table import Table
from storage_engine.errors import InvalidOption, StatementRefused, UserError

N_FRAMES = 10


@pytest.fixture
def sorted_log(store, db):
    """Ten frames of 100 rows with statistics; x grows from frame to frame."""
    store.execute(f"CREATE TABLE {db}.log (x BIGINT, s STRING, f DOUBLE) WITH ('table.statistics.columns' = 'x,s')")
    return filled(store.table(f"{db}.log"))


@pytest.fixture
def plain_log(store, db):
    """The same without statistics."""
    store.execute(f"CREATE TABLE {db}.log (x BIGINT, s STRING, f DOUBLE)")
    return filled(store.table(f"{db}.log"))


def filled(table: Table) -> Table:
    for i in range(N_FRAMES):
        x = list(range(100 * i, 100 * i + 100))
        table.append({"x": x, "s": [f"name {n:04d}" for n in x], "f": [n / 2 for n in x]})
    return table


def frames_of(table: Table, where: str) -> int:
    """How many frames a fetch with the condition brings to the client."""
    ranges = {bucket: (table.offsets("earliest")[bucket], end) for bucket, end in table.offsets().items()}
    return len(list(table._backend.fetch(table.name, ranges, None, where)))


@pytest.mark.needs("statistics")
@pytest.mark.parametrize(
    ("where", "n_rows", "n_frames"),
    [
        ("x >= 950", 50, 1), ("x = 123", 1, 1), ("x IN (5, 995)", 2, 2), ("x < 0", 0, 0), ("s LIKE 'name 00%'", 100, 1),
        ("x < 150 OR s >= 'name 0890'", 260, 4), ("NOT (x >= 100)", 100, 1), ("x IS NULL", 0, 0), ("f < 10", 20, 10),
        ("f < 10 AND x < 100", 20, 1),
    ],
)  # fmt: skip
def test_only_frames_that_can_match_are_sent(sorted_log, where, n_rows, n_frames):
    assert sorted_log.scan(["x"], where).read_all().num_rows == n_rows
    assert frames_of(sorted_log, where) == n_frames


@pytest.mark.needs("statistics", "consumers")
def test_a_consumer_advances_over_frames_that_were_all_skipped(sorted_log):
    consumer = sorted_log.consumer("c")

    rows = consumer.poll(where="x > 5000")

    assert rows.num_rows == 0
    assert rows.column_names[0] == "_change_type"
    assert consumer.position == sorted_log.offsets()
    assert consumer.poll(where="x > 5000") is None
    consumer.commit()
    sorted_log.append({"x": [6000]})
    assert sorted_log.consumer("c").poll(columns=["x"], where="x > 5000")["x"].to_pylist() == [6000]


@pytest.mark.needs("statistics")
def test_a_changelog_is_skipped_by_old_and_new_rows(store, db):
    store.execute(f"CREATE TABLE {db}.t (k BIGINT, v BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('table.statistics.columns' = '*')")
    table = store.table(f"{db}.t")
    table.upsert({"k": [1, 2], "v": [10, 20]})
    table.upsert({"k": [1], "v": [500]})  # -U 10, +U 500
    table.delete({"k": [2]})  # -D 20

    def changes(where: str) -> list:
        rows = table.scan(["v"], where).read_all()
        return list(zip(rows["_change_type"].to_pylist(), rows["v"].to_pylist(), strict=True))

    assert changes("v = 10") == [("+I", 10), ("-U", 10)]
    assert frames_of(table, "v = 10") == 2
    assert changes("v > 100") == [("+U", 500)]
    assert frames_of(table, "v > 100") == 1
    assert changes("v = 20") == [("+I", 20), ("-D", 20)]
    assert frames_of(table, "v > 15 AND v < 25") == 3


@pytest.mark.needs("statistics", "alter_table")
def test_frames_written_before_statistics_were_on_are_read_and_columns_added_later_count_as_null(store, db):
    store.execute(f"CREATE TABLE {db}.t (x BIGINT)")
    table = store.table(f"{db}.t")
    table.append({"x": [1]})
    store.execute(f"ALTER TABLE {db}.t SET ('table.statistics.columns' = '*')")
    store.table(f"{db}.t").append({"x": [2]})
    store.execute(f"ALTER TABLE {db}.t ADD y BIGINT")
    table = store.table(f"{db}.t")
    table.append({"x": [3], "y": [30]})

    assert table.scan(where="x = 3").read_all()["x"].to_pylist() == [3]
    assert frames_of(table, "x = 3") == 2
    assert table.scan(where="y = 30").read_all()["x"].to_pylist() == [3]
    assert frames_of(table, "y = 30") == 1
    assert table.scan(where="y IS NULL").read_all()["x"].to_pylist() == [1, 2]
    assert frames_of(table, "y IS NULL") == 2

    store.execute(f"ALTER TABLE {db}.t SET ('table.statistics.columns' = '')")
    store.table(f"{db}.t").append({"x": [4], "y": [40]})
    assert frames_of(table, "x = 3") == 3


@pytest.mark.needs("statistics")
def test_random_logs_and_conditions_give_the_same_rows_with_statistics_and_without(store, db):
    rng = np.random.default_rng(4)
    kinds = "x BIGINT, f DOUBLE, s STRING, b BOOLEAN, ts TIMESTAMP(3)"
    store.execute(f"CREATE TABLE {db}.a ({kinds}) WITH ('table.statistics.columns' = '*'); CREATE TABLE {db}.p ({kinds})")
    with_statistics, plain = store.table(f"{db}.a"), store.table(f"{db}.p")
    for i in range(30):
        n = int(rng.integers(1, 20))

        def some(values: np.ndarray, kind: pa.DataType, n: int = n) -> pa.Array:
            return pa.array(values, kind, mask=rng.random(n) < rng.choice([0, 0.3, 1], p=[0.6, 0.3, 0.1]))

        floats = rng.choice([-0.0, 0.0, 1.5, np.nan, float(i)], n)
        batch = pa.table(
            {
                "x": some(rng.integers(10 * i, 10 * i + 15, n), pa.int64()),
                "f": pa.array(floats.tolist(), pa.float64()),
                "s": some(np.array([f"{i // 3}-{k}" for k in rng.integers(0, 9, n)], object), pa.string()),
                "b": some(rng.random(n) < 0.5, pa.bool_()),
                "ts": some((1_483_228_800_000 + i * 60_000 + rng.integers(0, 60_000, n)).astype("M8[ms]"), pa.timestamp("ms")),
            }
        )
        with_statistics.append(batch)
        plain.append(batch)
    atoms = [
        "x < {n}", "x >= {n}", "x = {n}", "x NOT IN ({n}, 3)", "x BETWEEN {n} AND 200", "x IS NULL", "f = 0", "f > 1", "NOT f > 1",
        "f NOT IN (0, 1.5)", "s LIKE '{d}%'", "s >= '{d}'", "s NOT LIKE '{d}-%'", "b", "b IS NOT TRUE", "ts < '2017-01-01 00:{d}:00'",
    ]  # fmt: skip
    n_skipped = 0
    for _ in range(60):
        parts = [atoms[i].format(n=rng.integers(0, 320), d=rng.integers(10, 30) if i == 15 else rng.integers(0, 10)) for i in
                 rng.integers(0, len(atoms), rng.integers(1, 4))]  # fmt: skip
        where = f" {rng.choice(['AND', 'OR'])} ".join(f"{rng.choice(['', 'NOT '])}({part})" for part in parts)
        expected, found = plain.scan(where=where).read_all(), with_statistics.scan(where=where).read_all()
        assert repr(found.to_pylist()) == repr(expected.to_pylist()), where
        n_skipped += 30 - frames_of(with_statistics, where)
    assert n_skipped > 100


@pytest.mark.needs("statistics")
def test_statistics_of_bytes_or_of_no_column_are_refused(store, db):
    for columns, why in [("raw", "has no order"), ("nope", "names no column"), ("*,k", "stands beside")]:
        with pytest.raises(InvalidOption, match=why):
            store.execute(f"CREATE TABLE {db}.t (k BIGINT, raw BYTES) WITH ('table.statistics.columns' = '{columns}')")
    store.execute(f"CREATE TABLE {db}.t (k BIGINT, raw BYTES) WITH ('table.statistics.columns' = '*')")
    store.table(f"{db}.t").append({"k": [1], "raw": [b"x"]})
    assert store.table(f"{db}.t").scan(where="k = 1").read_all().num_rows == 1


def test_a_condition_that_cannot_be_read_is_refused_before_anything_is_fetched(plain_log):
    with pytest.raises(StatementRefused, match=r"(?i)no_such_function"):
        plain_log.scan(where="no_such_function(x) = 1")


# where a scan begins and ends


@pytest.mark.needs("scan_from_timestamp")
def test_a_scan_between_two_moments_has_the_rows_committed_between_them(plain_log):
    stamps = plain_log.scan(["x"], metadata=True).read_all()["_commit_timestamp"].to_pylist()
    middle = stamps[len(stamps) // 2]

    after = plain_log.scan(["x"], start=middle, metadata=True).read_all()["_commit_timestamp"].to_pylist()
    before = plain_log.scan(["x"], stop=middle, metadata=True).read_all()["_commit_timestamp"].to_pylist()

    assert after == [stamp for stamp in stamps if stamp >= middle]
    assert before == [stamp for stamp in stamps if stamp < middle]
    assert plain_log.scan(start=middle, stop=middle).read_all().num_rows == 0
    assert plain_log.scan(start=dt.datetime(2000, 1, 1, tzinfo=dt.UTC)).read_all().num_rows == len(stamps)


@pytest.mark.needs("scan_from_timestamp")
def test_a_moment_in_the_future_or_without_a_zone_is_refused(plain_log):
    with pytest.raises(UserError, match="in the future"):
        plain_log.scan(start=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    with pytest.raises(UserError, match="no time zone"):
        plain_log.scan(start=dt.datetime(2017, 1, 1))  # noqa: DTZ001 - what is refused


@pytest.mark.needs("last_rows")
def test_the_last_rows_of_a_log_come_from_all_buckets_in_the_order_of_commits(store, db):
    store.execute(f"CREATE TABLE {db}.t (k BIGINT, i BIGINT) WITH ('bucket.num' = '3', 'bucket.key' = 'k')")
    table = store.table(f"{db}.t")
    assert table.last_rows(5).num_rows == 0
    for i in range(20):
        table.append({"k": [i, i + 100, i + 200], "i": [i] * 3})

    assert table.last_rows(6)["i"].to_pylist() == [18, 18, 18, 19, 19, 19]
    assert table.last_rows(1, ["i"])["i"].to_pylist() == [19]
    assert table.last_rows(0).num_rows == 0
    assert table.last_rows(10_000).num_rows == 60
    store.execute(f"CREATE TABLE {db}.pk (k BIGINT, PRIMARY KEY (k) NOT ENFORCED)")
    with pytest.raises(UserError, match="no log table"):
        store.table(f"{db}.pk").last_rows(1)


def test_a_limited_read_gives_so_many_current_rows(store, db):
    store.execute(f"CREATE TABLE {db}.t (k BIGINT, v BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('bucket.num' = '3')")
    table = store.table(f"{db}.t")
    table.upsert({"k": list(range(100)), "v": [0] * 100})
    table.upsert({"k": list(range(50)), "v": [1] * 50})

    rows = table.read(limit=7)

    assert rows.num_rows == 7
    assert len(set(rows["k"].to_pylist())) == 7
    assert all(row["v"] == (row["k"] < 50) for row in rows.to_pylist())
    assert table.read(where="v = 1", limit=30).num_rows == 30
    assert table.read(limit=0).num_rows == 0
    assert table.read(limit=1000).num_rows == 100


@pytest.mark.needs("prefix_lookup")
def test_a_prefix_lookup_with_more_rows_than_allowed_is_refused_and_a_limit_brings_it_below(store, db):
    store.execute(f"CREATE TABLE {db}.t (a BIGINT, b BIGINT, v STRING, PRIMARY KEY (a, b) NOT ENFORCED) WITH ('bucket.key' = 'a')")
    table = store.table(f"{db}.t")
    table.upsert({"a": [1] * 50 + [2] * 50, "b": list(range(50)) * 2, "v": [f"v{i}" for i in range(100)]})

    with pytest.raises(UserError, match="100 rows, more than 99"):
        table.prefix_lookup({"a": [1, 2]}, rows_max=99)
    assert table.prefix_lookup({"a": [1, 2]}, rows_max=100).num_rows == 100
    cut = table.prefix_lookup({"a": [2, 1]}, limit=3, rows_max=6)
    assert cut["b"].to_pylist() == [0, 1, 2] * 2
    assert cut["v"].to_pylist() == ["v50", "v51", "v52", "v0", "v1", "v2"]
