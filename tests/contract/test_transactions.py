"""Contract: a commit is atomic over tables, applied once per write id, and moves progress only from where it was expected."""

from __future__ import annotations

import threading
import time

import pyarrow as pa
import pytest

from storage_engine import Progress, TableBucket, WriteId, WriteOp
from storage_engine.errors import ProgressConflict, SchemaMismatch

pytestmark = pytest.mark.needs("aggregation")  # one of the tables of this module

B0 = TableBucket("", 0)


def make_tables(store, db):
    store.execute(f"""
        CREATE TABLE {db}.log (x BIGINT NOT NULL, name STRING) WITH ('bucket.num' = '3', 'bucket.key' = 'x');
        CREATE TABLE {db}.pk (id BIGINT NOT NULL, n BIGINT, PRIMARY KEY (id) NOT ENFORCED) WITH ('bucket.num' = '3');
        CREATE TABLE {db}.total (k STRING NOT NULL, n BIGINT, PRIMARY KEY (k) NOT ENFORCED)
          WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum')
    """)


@pytest.fixture
def tables(store, db):
    make_tables(store, db)
    return {name: store.table(f"{db}.{name}") for name in ("log", "pk", "total")}


def op(table, kind, rows, columns=None):
    return WriteOp(table, kind, pa.table(rows), columns)


def counts(tables):
    return {name: table.count() for name, table in tables.items()}


@pytest.mark.needs("transactions")
def test_all_tables_of_a_commit_become_visible_with_one_version(store, db, tables):
    before = store.version()

    result = store.commit(
        [
            op(f"{db}.log", "append", {"x": list(range(30)), "name": ["n"] * 30}),
            op(f"{db}.pk", "upsert", {"id": list(range(20)), "n": [1] * 20}),
            op(f"{db}.total", "upsert", {"k": ["all"], "n": [30]}),
        ]
    )

    assert result.version == before + 1 == store.version()
    assert counts(tables) == {"log": 30, "pk": 20, "total": 1}
    (info,) = store.commits(before)
    assert info.version == result.version
    assert {table: sum(stop - start for start, stop in ranges.values()) for table, ranges in info.ranges.items()} == {
        f"{db}.log": 30,
        f"{db}.pk": 20,
        f"{db}.total": 1,
    }


@pytest.mark.needs("transactions")
@pytest.mark.parametrize(
    "bad",
    [
        ("pk", "upsert", {"id": [None], "n": [1]}),
        ("pk", "upsert", {"id": [1], "wrong": [1]}),
        ("none", "append", {"x": [1]}),
        ("log", "upsert", {"x": [1]}),
    ],
    ids=["null key", "wrong column", "no table", "wrong kind"],
)
def test_a_commit_with_one_bad_operation_leaves_nothing_behind(store, db, tables, bad):
    before = store.version()
    name, kind, rows = bad
    from storage_engine.errors import UserError

    with pytest.raises(UserError):
        store.commit(
            [
                op(f"{db}.log", "append", {"x": [1], "name": ["n"]}),
                op(f"{db}.total", "upsert", {"k": ["all"], "n": [1]}),
                WriteOp(f"{db}.{name}", kind, pa.table({column: pa.array(values, pa.int64()) for column, values in rows.items()})),
            ],
            progress=[Progress("job:bad", {f"{db}.log": {B0: 1}})],
        )

    assert store.version() == before
    assert counts(tables) == {"log": 0, "pk": 0, "total": 0}
    assert store.progress("job:bad") == {}
    tables["total"].upsert({"k": ["all"], "n": [5]})
    assert tables["total"].read().to_pylist() == [{"k": "all", "n": 5}]


@pytest.mark.needs("transactions")
def test_an_operation_sees_those_before_it_in_the_same_commit(store, db, tables):
    store.commit(
        [
            op(f"{db}.pk", "upsert", {"id": [1, 2], "n": [10, 20]}),
            op(f"{db}.pk", "delete", {"id": [1]}),
            op(f"{db}.pk", "upsert", {"id": [2], "n": [21]}),
        ]
    )

    assert tables["pk"].read().to_pylist() == [{"id": 2, "n": 21}]


@pytest.mark.needs("idempotent_writes")
def test_a_write_with_the_same_id_is_applied_once(store, db, tables):
    write = WriteId(f"writer-{db}", 1)

    first = tables["total"].upsert({"k": ["a"], "n": [5]}, write_id=write)
    again = tables["total"].upsert({"k": ["a"], "n": [5]}, write_id=write)
    other = tables["total"].upsert({"k": ["a"], "n": [5]}, write_id=WriteId(f"writer-{db}", 2))

    assert (first.is_duplicate, again.is_duplicate, other.is_duplicate) == (False, True, False)
    assert tables["total"].read()["n"].to_pylist() == [10]
    assert first.version <= again.version < other.version


@pytest.mark.needs("idempotent_writes")
def test_a_retried_write_is_recognised_after_a_restart(own):
    make_tables(own.store, "a")
    write = WriteId("w", 41)
    own.store.commit([op("a.total", "upsert", {"k": ["a"], "n": [5]}), op("a.log", "append", {"x": [1]})], write_id=write)

    own.restart()
    again = own.store.commit([op("a.total", "upsert", {"k": ["a"], "n": [5]}), op("a.log", "append", {"x": [1]})], write_id=write)

    assert again.is_duplicate
    assert own.store.table("a.total").read()["n"].to_pylist() == [5]
    assert own.store.table("a.log").count() == 1


@pytest.mark.needs("idempotent_writes")
def test_a_refused_write_does_not_use_up_its_id(tables, db):
    write = WriteId(f"writer-{db}", 1)
    with pytest.raises(SchemaMismatch):
        tables["total"].upsert({"k": [None], "n": [5]}, write_id=write)

    assert not tables["total"].upsert({"k": ["a"], "n": [5]}, write_id=write).is_duplicate


@pytest.mark.needs("jobs")
def test_progress_moves_together_with_what_it_wrote(store, db, tables):
    owner = f"job:{db}"
    store.commit([op(f"{db}.pk", "upsert", {"id": [1], "n": [1]})], [Progress(owner, {f"{db}.log": {B0: 3}}, {}, {"rows": 3})])

    recorded = store.progress(owner)[owner]

    assert (recorded.offsets, recorded.detail) == ({f"{db}.log": {B0: 3}}, {"rows": 3})
    assert tables["pk"].count() == 1


@pytest.mark.needs("jobs")
def test_progress_from_elsewhere_than_expected_is_refused_with_all_of_its_commit(store, db, tables):
    owner = f"job:{db}"
    store.commit([], [Progress(owner, {f"{db}.log": {B0: 3}}, {})])

    for stale in ({}, {f"{db}.log": {B0: 2}}):
        with pytest.raises(ProgressConflict, match=owner):
            store.commit([op(f"{db}.pk", "upsert", {"id": [1], "n": [1]})], [Progress(owner, {f"{db}.log": {B0: 9}}, stale)])

    assert store.progress(owner)[owner].offsets == {f"{db}.log": {B0: 3}}
    assert tables["pk"].count() == 0


@pytest.mark.needs("jobs", "idempotent_writes")
def test_a_retried_commit_is_a_duplicate_even_though_its_progress_has_moved(store, db, tables):
    owner, write = f"job:{db}", WriteId(f"writer-{db}", 1)

    def commit():
        progress = Progress(owner, {f"{db}.log": {B0: 3}}, expected={})
        return store.commit([op(f"{db}.total", "upsert", {"k": ["a"], "n": [5]})], [progress], write)

    commit()

    assert commit().is_duplicate
    assert tables["total"].read()["n"].to_pylist() == [5]


@pytest.mark.needs("jobs")
def test_of_many_workers_that_start_from_the_same_progress_one_wins(shared, store, db, tables):
    owner = f"job:{db}"
    outcomes = []

    def work():
        try:
            shared.peer().commit([op(f"{db}.total", "upsert", {"k": ["a"], "n": [1]})], [Progress(owner, {f"{db}.log": {B0: 1}}, {})])
            outcomes.append("won")
        except ProgressConflict:
            outcomes.append("refused")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["refused"] * 5 + ["won"]
    assert tables["total"].read()["n"].to_pylist() == [1]


@pytest.mark.needs("jobs")
def test_progress_is_found_by_prefix_and_survives_a_restart(own):
    own.store.execute("CREATE TABLE a.t (x BIGINT, ds STRING) PARTITIONED BY (ds) WITH ('bucket.num' = '3')")
    own.store.backend.create_partition("a.t", "2017-01-01", if_not_exists=False)
    for owner in ("job:a", "job:b", "tier:x"):
        own.store.commit([], [Progress(owner, {"a.t": {TableBucket("2017-01-01", 2): 7}}, detail={"note": owner})])

    own.restart()

    assert sorted(own.store.progress("job:")) == ["job:a", "job:b"]
    assert own.store.progress("tier:x")["tier:x"].offsets == {"a.t": {TableBucket("2017-01-01", 2): 7}}
    assert own.store.progress("tier:x")["tier:x"].detail == {"note": "tier:x"}


@pytest.mark.needs("journal")
def test_await_version_returns_at_once_when_there_is_something_newer(store, tables):
    version = tables["log"].append({"x": [1]}).version

    assert store.await_version(version - 1, timeout_s=30) >= version


@pytest.mark.needs("journal")
def test_await_version_returns_the_version_when_the_time_is_over(store):
    version = store.version()
    begin = time.monotonic()

    assert store.await_version(version, timeout_s=0.2) == version
    assert 0.15 < time.monotonic() - begin < 5


@pytest.mark.needs("journal")
def test_await_version_is_woken_by_a_commit(shared, store, tables):
    version = store.version()
    woken = []
    waiter = threading.Thread(target=lambda: woken.append(shared.peer().await_version(version, timeout_s=30)))
    waiter.start()

    tables["log"].append({"x": [1]})
    waiter.join(20)

    assert woken == [version + 1]


@pytest.mark.needs("journal")
def test_commits_are_listed_in_order_up_to_a_limit(store, db, tables):
    before = store.version()
    for x in range(5):
        tables["log"].append({"x": [x]})

    assert [info.version for info in store.commits(before, 3)] == [before + 1, before + 2, before + 3]
    assert [info.version for info in store.commits(before + 3)] == [before + 4, before + 5]
    assert store.commits(before + 5) == []


@pytest.mark.needs("consumers")
def test_a_consumer_goes_on_behind_what_it_committed(store, tables):
    tables["log"].append({"x": [1, 2, 3]})
    consumer = tables["log"].consumer("c")
    assert sorted(consumer.poll()["x"].to_pylist()) == [1, 2, 3]
    consumer.commit()
    tables["log"].append({"x": [4]})
    assert consumer.poll()["x"].to_pylist() == [4]

    again = tables["log"].consumer("c")

    assert again.lag() == 1
    assert again.poll()["x"].to_pylist() == [4]
    assert again.poll() is None
    again.commit()
    assert again.lag() == 0


@pytest.mark.needs("consumers")
def test_a_consumer_keeps_its_offsets_over_a_restart(own):
    make_tables(own.store, "a")
    own.store.table("a.log").append({"x": [1, 2, 3]})
    consumer = own.store.table("a.log").consumer("c")
    consumer.poll()
    consumer.commit()
    own.store.table("a.log").append({"x": [4]})

    own.restart()

    assert own.store.table("a.log").consumer("c").poll()["x"].to_pylist() == [4]


@pytest.mark.needs("consumers")
def test_a_consumer_of_a_primary_key_table_gets_changes(tables):
    tables["pk"].upsert({"id": [1], "n": [1]})
    tables["pk"].upsert({"id": [1], "n": [2]})

    rows = tables["pk"].consumer("c").poll()

    assert rows["_change_type"].to_pylist() == ["+I", "-U", "+U"]
    assert rows["n"].to_pylist() == [1, 1, 2]


@pytest.mark.needs("consumers")
def test_a_consumer_polls_at_most_about_as_many_rows_as_asked(tables):
    tables["log"].append({"x": list(range(100))})
    consumer = tables["log"].consumer("c")

    polled = []
    while (rows := consumer.poll(max_rows=30)) is not None:
        assert rows.num_rows <= 30
        polled += rows["x"].to_pylist()

    assert sorted(polled) == list(range(100))


@pytest.mark.needs("transactions")
def test_a_reader_never_sees_half_a_commit(shared, store, db, tables):
    """Each commit adds the same number to two tables; whoever reads both offsets at one version finds them equal."""
    stop = threading.Event()

    def write():
        x = 0
        while not stop.is_set():
            store.commit(
                [op(f"{db}.log", "append", {"x": [x, x + 1, x + 2]}), op(f"{db}.pk", "upsert", {"id": [x, x + 1, x + 2], "n": [x] * 3})]
            )
            x += 3

    writer = threading.Thread(target=write)
    writer.start()
    try:
        peer = shared.peer()
        for _ in range(20):
            version = peer.version()
            ends = [sum(peer.table(f"{db}.{name}").offsets(at_version=version).values()) for name in ("log", "pk")]
            assert ends[0] == ends[1]
            assert len(peer.table(f"{db}.pk").read(columns=["id"])) % 3 == 0
    finally:
        stop.set()
        writer.join()


@pytest.mark.needs("jobs", "transactions")
def test_progress_in_a_partition_that_the_same_commit_makes_is_recorded(store, db):
    store.execute(
        f"CREATE TABLE {db}.part (day STRING NOT NULL, n BIGINT) PARTITIONED BY (day)"
        " WITH ('bucket.num' = '1', 'table.auto-partition.enabled' = 'true', 'table.auto-partition.key' = 'day',"
        " 'table.auto-partition.time-unit' = 'DAY', 'table.auto-partition.num-retention' = '0')"
    )
    owner, bucket = f"job:{db}", TableBucket("20300101", 0)

    store.commit([op(f"{db}.part", "append", {"day": ["20300101"], "n": [1]})], [Progress(owner, {f"{db}.part": {bucket: 1}}, {})])

    assert store.progress(owner)[owner].offsets == {f"{db}.part": {bucket: 1}}
