"""The proof of results whose input has aged: read from wherever it still is, else refused, and never repaired to something wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from query_engine.verify import VerifyReport, repair, verify
from storage_engine import Store
from storage_engine.api import FORGOTTEN_INPUT
from storage_engine.engine.fsck import check_store
from storage_engine.errors import InvalidPartition, StatementRefused
from storage_engine.lake import LakeHistory, Tierer
from storage_engine.stream import SqlSession, Worker
from tests.engine.cleaning import HOUR_MS, Clock, backend_of, opened

N = 40


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with opened(tmp_path / "s", clock) as store:
        yield store


def run(store: Store, *jobs: str) -> Worker:
    """Submit INSERTs, each as a job of the name of its sink."""
    for text in jobs:
        name = text.partition("INSERT INTO db.")[2].split()[0]
        SqlSession(store).execute(f"SET 'pipeline.name' = '{name}'; {text}")
    return Worker(store)


def write_and_age(store: Store, clock: Clock, worker: Worker, days: tuple[str, ...] = ("a",)) -> None:
    """Forty rows into a log and a primary-key table within two hours, read by the jobs, of which the first half expires."""
    for n in range(N):
        clock.pass_ms(HOUR_MS // 20)
        row = {"id": [n], "k": [n % 4], "ds": [days[n * len(days) // N]]}
        store.table("db.log").append(row)
        store.table("db.pk").upsert({"id": [n % 30], "k": [n % 4]})
        worker.run_until_idle()
    backend_of(store).clean()
    assert all(0 < sum(store.table(name).offsets("earliest").values()) for name in ("db.log", "db.pk"))


def tables(options: str = "", partitioned: str = "") -> str:
    return (
        f"CREATE TABLE db.log (id BIGINT, k INT, ds STRING) {partitioned} WITH ('table.log.ttl' = '1h'{options});"
        f"CREATE TABLE db.pk (id BIGINT, k INT, PRIMARY KEY (id) NOT ENFORCED) WITH ('table.log.ttl' = '1h'{options});"
        "CREATE TABLE db.counts (k INT, c BIGINT, PRIMARY KEY (k) NOT ENFORCED);"
        "CREATE TABLE db.days (ds STRING, k INT, c BIGINT, PRIMARY KEY (ds, k) NOT ENFORCED) PARTITIONED BY (ds);"
        "CREATE TABLE db.copy (id BIGINT, k INT) WITH ('table.log.ttl' = '-1');"
    )


def rows(store: Store, table: str) -> list[tuple[object, ...]]:
    return sorted(tuple(row.values()) for row in store.table(table).read().to_pylist())


def one(reports: list[VerifyReport]) -> VerifyReport:
    (report,) = reports
    return report


def test_a_log_that_has_begun_to_expire_proves_nothing_and_repairs_nothing(store: Store, clock: Clock) -> None:
    store.execute(tables())
    worker = run(store, "INSERT INTO db.counts SELECT k, COUNT(*) FROM db.log GROUP BY k", "INSERT INTO db.copy SELECT id, k FROM db.log")
    write_and_age(store, clock, worker)

    for table in ("db.counts", "db.copy"):
        report = one(verify(store, None, table))
        assert not report.holds
        assert (report.rows_compared, report.rows_differing) == (0, 0)
        assert "rows of db.log below offset" in report.notes[0]
        assert "have expired" in report.notes[0]
        with pytest.raises(StatementRefused, match="nothing was repaired"):
            repair(store, None, table)
    assert rows(store, "db.counts") == [(k, 10) for k in range(4)]


def test_a_tiered_log_is_read_from_the_lake_where_the_store_has_lost_it(store: Store, clock: Clock, tmp_path: Path) -> None:
    store.execute(
        tables(", 'table.datalake.enabled' = 'true', 'bucket.num' = '2', 'bucket.key' = 'id'").replace(
            "'bucket.num' = '2', 'bucket.key' = 'id'", "'bucket.num' = '2'"
        )
    )
    worker = run(store, "INSERT INTO db.counts SELECT k, COUNT(*) FROM db.log GROUP BY k", "INSERT INTO db.copy SELECT id, k FROM db.log")
    for n in range(N):
        clock.pass_ms(HOUR_MS // 20)
        store.table("db.log").append({"id": [n, n], "k": [n % 4, n % 4], "ds": ["x", "y"]})
        worker.run_until_idle()
    Tierer(store, tmp_path / "lake").run_once(force=True)
    backend_of(store).clean()
    assert sum(store.table("db.log").offsets("earliest").values()) > 0
    lake = LakeHistory(store, tmp_path / "lake")

    assert not one(verify(store, None, "db.counts")).holds
    assert one(verify(store, None, "db.counts", lake=lake)).rows_compared == 4
    assert one(verify(store, None, "db.copy", lake=lake)).rows_compared == 2 * N
    store.table("db.counts").upsert({"k": [1], "c": [7]})
    assert one(verify(store, None, "db.counts", lake=lake)).rows_differing == 1
    assert repair(store, None, "db.counts", lake=lake) == 1
    assert rows(store, "db.counts") == [(k, 20) for k in range(4)]


def test_the_current_rows_of_a_primary_key_table_stand_in_for_its_changelog(store: Store, clock: Clock) -> None:
    store.execute(tables())
    worker = run(store, "INSERT INTO db.counts SELECT k, COUNT(*) FROM db.pk GROUP BY k")
    write_and_age(store, clock, worker)
    right = rows(store, "db.counts")
    pk = store.table("db.pk")
    pk.upsert({"id": [0, 100], "k": [3, 3]})  # what the job has not read yet is no part of it
    pk.delete({"id": [1, 25]})

    assert one(verify(store, None, "db.counts")).rows_compared == 4
    assert one(verify(store, None, "db.counts")).holds
    store.table("db.counts").upsert({"k": [0], "c": [99]})
    store.table("db.counts").delete({"k": [1]})
    assert repair(store, None, "db.counts") == 2
    assert rows(store, "db.counts") == right


def test_a_day_whose_input_is_held_is_proved_beside_days_that_have_expired(store: Store, clock: Clock) -> None:
    store.execute(tables(partitioned="PARTITIONED BY (ds)"))
    worker = run(store, "INSERT INTO db.days SELECT ds, 7, COUNT(*) FROM db.log GROUP BY ds")
    write_and_age(store, clock, worker, ("2020-01-01", "2020-01-02", "2020-01-03", "2020-01-04"))
    store.table("db.days").upsert({"ds": ["2020-01-04"], "k": [7], "c": [99]})

    assert not one(verify(store, None, "db.days")).holds
    assert one(verify(store, None, "db.days", ["2020-01-01"])).refused
    assert one(verify(store, None, "db.days", ["2020-01-04"])).rows_differing == 1
    with pytest.raises(StatementRefused, match="nothing was repaired"):
        repair(store, None, "db.days", ["2020-01-01", "2020-01-04"])
    assert repair(store, None, "db.days", ["2020-01-04"]) == 1
    assert one(verify(store, None, "db.days", ["2020-01-04"])).holds
    assert rows(store, "db.days") == [(f"2020-01-0{n}", 7, 10) for n in range(1, 5)]


@pytest.mark.parametrize("kind", ["log", "primary key"])
def test_what_came_of_a_dropped_partition_stays_and_the_others_are_proved(store: Store, kind: str) -> None:
    key = ", PRIMARY KEY (id, ds) NOT ENFORCED" if kind == "primary key" else ""
    store.execute(
        f"CREATE TABLE db.src (id BIGINT, k INT, ds STRING{key}) PARTITIONED BY (ds);"
        "CREATE TABLE db.days (ds STRING, c BIGINT, PRIMARY KEY (ds) NOT ENFORCED);"
        "CREATE TABLE db.total (k INT, c BIGINT, PRIMARY KEY (k) NOT ENFORCED);"
    )
    worker = run(
        store,
        "INSERT INTO db.days SELECT ds, COUNT(*) FROM db.src GROUP BY ds",
        "INSERT INTO db.total SELECT k, COUNT(*) FROM db.src GROUP BY k",
    )
    source = store.table("db.src")
    new = {"id": [1, 2, 3], "k": [1, 1, 1], "ds": ["a", "b", "b"]}
    _ = source.append(new) if kind == "log" else source.upsert(new)
    worker.run_until_idle()
    store.execute("ALTER TABLE db.src DROP PARTITION (ds = 'a')")
    worker.run_until_idle()

    for table in ("db.days", "db.total"):
        report = one(verify(store, None, table))
        assert "1 rows that were read of db.src are gone (partition a was dropped)" in report.refused
        with pytest.raises(StatementRefused, match="nothing was repaired"):
            repair(store, None, table)
    assert rows(store, "db.days") == [("a", 1), ("b", 2)]
    assert rows(store, "db.total") == [(1, 3)]


def test_a_partition_beside_a_dropped_one_is_proved(store: Store) -> None:
    store.execute(
        "CREATE TABLE db.src (id BIGINT, ds STRING) PARTITIONED BY (ds);"
        "CREATE TABLE db.days (ds STRING, k INT, c BIGINT, PRIMARY KEY (ds, k) NOT ENFORCED) PARTITIONED BY (ds);"
    )
    worker = run(store, "INSERT INTO db.days SELECT ds, 7, COUNT(*) FROM db.src GROUP BY ds")
    store.table("db.src").append({"id": [1, 2, 3], "ds": ["a", "b", "b"]})
    worker.run_until_idle()
    store.execute("ALTER TABLE db.src DROP PARTITION (ds = 'a')")
    store.table("db.src").append({"id": [4], "ds": ["b"]})
    worker.run_until_idle()

    assert one(verify(store, None, "db.days", ["a"])).refused
    assert one(verify(store, None, "db.days", ["b"])).holds
    store.table("db.days").upsert({"ds": ["b"], "k": [7], "c": [99]})
    assert repair(store, None, "db.days", ["b"]) == 1
    assert rows(store, "db.days") == [("a", 7, 1), ("b", 7, 3)]


def test_what_was_dropped_is_known_after_a_restart_and_where_the_store_had_not_noted_it(tmp_path: Path) -> None:
    with opened(tmp_path / "s", Clock()) as store:
        store.execute("CREATE TABLE db.src (k INT, ds STRING) PARTITIONED BY (ds)")
        store.execute("CREATE TABLE db.counts (k INT, c BIGINT, PRIMARY KEY (k) NOT ENFORCED)")
        worker = run(store, "INSERT INTO db.counts SELECT k, COUNT(*) FROM db.src GROUP BY k")
        store.table("db.src").append({"k": [1, 2, 2], "ds": ["a", "b", "b"]})
        worker.run_until_idle()
        store.execute("ALTER TABLE db.src DROP PARTITION (ds = 'a')")

    assert check_store(tmp_path / "s", keys=True).damages == []
    with opened(tmp_path / "s", Clock()) as store:
        assert "1 rows that were read of db.src are gone (partition a was dropped)" in one(verify(store, None, "db.counts")).refused
        store.backend.put_object(FORGOTTEN_INPUT, "counts", None)
        assert "1 rows that were read of db.src are gone (their partitions were dropped)" in one(verify(store, None, "db.counts")).refused
        with pytest.raises(StatementRefused, match="nothing was repaired"):
            repair(store, None, "db.counts")


def test_a_log_that_a_job_writes_is_compared_as_far_as_it_is_held_only(store: Store, clock: Clock) -> None:
    store.execute(
        tables("")
        .replace("'table.log.ttl' = '1h'", "'table.log.ttl' = '-1'")
        .replace("db.copy (id BIGINT, k INT) WITH ('table.log.ttl' = '-1')", "db.copy (id BIGINT, k INT) WITH ('table.log.ttl' = '1h')")
    )
    worker = run(store, "INSERT INTO db.copy SELECT id, k FROM db.log")
    for n in range(N):
        clock.pass_ms(HOUR_MS // 20)
        store.table("db.log").append({"id": [n], "k": [n], "ds": ["x"]})
        worker.run_until_idle()
    backend_of(store).clean()

    report = one(verify(store, None, "db.copy"))
    assert "rows of db.copy below offset" in report.refused
    assert "they cannot be compared" in report.refused


def test_an_extra_row_is_found_where_every_column_is_a_key(store: Store) -> None:
    store.execute(
        "CREATE TABLE db.src (id BIGINT, k INT NOT NULL, PRIMARY KEY (id) NOT ENFORCED);"
        "CREATE TABLE db.kinds (k INT, PRIMARY KEY (k) NOT ENFORCED);"
    )
    worker = run(store, "INSERT INTO db.kinds SELECT DISTINCT k FROM db.src")
    store.table("db.src").upsert({"id": [1, 2], "k": [1, 2]})
    worker.run_until_idle()
    assert one(verify(store, None, "db.kinds")).rows_compared == 2
    store.table("db.kinds").upsert({"k": [777]})

    assert [row["_problem"] for row in one(verify(store, None, "db.kinds")).sample] == ["extra"]
    assert repair(store, None, "db.kinds") == 1
    assert rows(store, "db.kinds") == [(1,), (2,)]


@pytest.mark.parametrize("form", ["%Y%m%d", "%Y-%m-%d"])
def test_a_day_is_found_however_its_column_writes_it(store: Store, form: str) -> None:
    written = {"%Y%m%d": "20200105", "%Y-%m-%d": "2020-01-05"}[form]
    store.execute(
        "CREATE TABLE db.src (id BIGINT, ds STRING) PARTITIONED BY (ds);"
        "CREATE TABLE db.days (ds STRING, k INT, c BIGINT, PRIMARY KEY (ds, k) NOT ENFORCED) PARTITIONED BY (ds);"
    )
    worker = run(store, "INSERT INTO db.days SELECT ds, 7, COUNT(*) FROM db.src GROUP BY ds")
    store.table("db.src").append({"id": [1, 2], "ds": [written, written]})
    worker.run_until_idle()
    store.table("db.days").upsert({"ds": [written], "k": [7], "c": [99]})

    for asked in ("2020-01-05", "20200105"):
        assert one(verify(store, None, "db.days", [asked])).rows_differing == 1
    assert repair(store, None, "db.days", ["2020-01-05"]) == 1
    assert one(verify(store, None, "db.days", ["2020-01-05"])).rows_compared == 1


def test_partitions_without_a_row_are_not_proved(store: Store) -> None:
    store.execute(
        "CREATE TABLE db.src (id BIGINT, ds STRING) PARTITIONED BY (ds);"
        "CREATE TABLE db.days (ds STRING, k INT, c BIGINT, PRIMARY KEY (ds, k) NOT ENFORCED) PARTITIONED BY (ds);"
    )
    worker = run(store, "INSERT INTO db.days SELECT ds, 7, COUNT(*) FROM db.src GROUP BY ds")
    store.table("db.src").append({"id": [1], "ds": ["2020-01-05"]})
    worker.run_until_idle()

    report = one(verify(store, None, "db.days", ["2020-01-06"]))
    assert not report.holds
    assert report.notes == ("no row of 2020-01-06 on either side: nothing was compared",)
    both = one(verify(store, None, "db.days", ["2020-01-05", "2020-01-06"]))
    assert both.holds
    assert both.notes == report.notes
    with pytest.raises(InvalidPartition, match="nonsense"):
        verify(store, None, "db.days", ["nonsense"])


def test_rows_joined_before_a_looked_up_row_came_are_noted_and_not_repaired(store: Store) -> None:
    store.execute(
        "CREATE TABLE db.dim (id BIGINT, name STRING, PRIMARY KEY (id) NOT ENFORCED);"
        "CREATE TABLE db.src (id BIGINT, d BIGINT);"
        "CREATE TABLE db.named (id BIGINT, name STRING, PRIMARY KEY (id) NOT ENFORCED);"
    )
    store.table("db.dim").upsert({"id": [2], "name": ["b"]})
    worker = run(
        store, "INSERT INTO db.named SELECT s.id, x.name FROM db.src s LEFT JOIN db.dim FOR SYSTEM_TIME AS OF PROCTIME() AS x ON s.d = x.id"
    )
    store.table("db.src").append({"id": [1, 2], "d": [1, 2]})
    worker.run_until_idle()
    assert one(verify(store, None, "db.named")).notes == ()
    store.table("db.named").upsert({"id": [2], "name": ["damaged"]})
    assert repair(store, None, "db.named") == 1

    store.table("db.dim").upsert({"id": [1], "name": ["a"]})

    report = one(verify(store, None, "db.named"))
    assert report.rows_differing == 1
    assert "db.dim has changed since the job began (1 rows" in report.notes[0]
    with pytest.raises(StatementRefused, match="nothing was repaired"):
        repair(store, None, "db.named")
    assert rows(store, "db.named") == [(1, None), (2, "b")]


@pytest.mark.parametrize(("poisoned", "is_proved"), [(35, True), (3, False)])
def test_rows_in_quarantine_are_left_out_as_long_as_their_changes_are_held(
    store: Store, clock: Clock, poisoned: int, is_proved: bool
) -> None:
    store.execute(
        "CREATE TABLE db.words (id BIGINT, w STRING, PRIMARY KEY (id) NOT ENFORCED) WITH ('table.log.ttl' = '1h');"
        "CREATE TABLE db.numbers (id BIGINT, n INT, PRIMARY KEY (id) NOT ENFORCED);"
    )
    worker = run(store, "SET 'pipeline.poison-row' = 'quarantine'; INSERT INTO db.numbers SELECT id, CAST(w AS INT) FROM db.words")
    for n in range(N):
        clock.pass_ms(HOUR_MS // 20)
        store.table("db.words").upsert({"id": [n], "w": ["x" if n == poisoned else str(n)]})
        worker.run_until_idle()
    backend_of(store).clean()
    assert 3 < sum(store.table("db.words").offsets("earliest").values()) < 35

    report = one(verify(store, None, "db.numbers"))

    assert report.rows_quarantined == 1
    assert (report.holds, report.rows_compared) == (is_proved, N - 1 if is_proved else 0)
    assert is_proved or "among them rows in quarantine" in report.refused


def test_current_rows_that_go_without_a_change_prove_nothing(store: Store, clock: Clock) -> None:
    store.execute(tables().replace("NOT ENFORCED) WITH (", "NOT ENFORCED) WITH ('table.kv.ttl' = '2h', "))
    store.execute("CREATE TABLE db.same (id BIGINT, k INT, PRIMARY KEY (id) NOT ENFORCED)")
    worker = run(store, "INSERT INTO db.same SELECT id, k FROM db.pk")
    write_and_age(store, clock, worker)

    assert "'table.kv.ttl'" in one(verify(store, None, "db.same")).refused


def test_days_of_a_tiered_log_are_read_from_the_lake_but_for_a_day_that_was_dropped(store: Store, clock: Clock, tmp_path: Path) -> None:
    store.execute(tables(", 'table.datalake.enabled' = 'true'", "PARTITIONED BY (ds)"))
    worker = run(store, "INSERT INTO db.days SELECT ds, 7, COUNT(*) FROM db.log GROUP BY ds")
    lake = LakeHistory(store, tmp_path / "lake")
    for n in range(N):
        clock.pass_ms(HOUR_MS // 20)
        store.table("db.log").append({"id": [n], "k": [n], "ds": [("a", "b", "c", "d")[n // 10]]})
    worker.run_until_idle()
    Tierer(store, tmp_path / "lake").run_once(force=True)
    backend_of(store).clean()
    assert store.table("db.log").count() < 30

    assert not one(verify(store, None, "db.days")).holds
    assert one(verify(store, None, "db.days", lake=lake)).rows_compared == 4
    store.execute("ALTER TABLE db.log DROP PARTITION (ds = 'a')")
    assert one(verify(store, None, "db.days", ["a"], lake=lake)).refused
    assert one(verify(store, None, "db.days", ["b"], lake=lake)).holds
    assert one(verify(store, None, "db.days", ["b"])).refused
