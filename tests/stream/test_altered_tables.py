"""Tables are altered under running jobs: a job that does not use the column goes on, one that does is named and the table stays."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.lake import Tierer, connect_delta, union_read
from storage_engine.stream import SqlSession, Worker, load_job
from tests.stream.comparing import differing_jobs, sink_rows

TABLES = """
CREATE TABLE db.a (id BIGINT, shop BIGINT, qty INT, note STRING) WITH ('bucket.num' = '2');
CREATE TABLE db.shops (shop BIGINT, city STRING, zip STRING, PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.lines (id BIGINT, city STRING, qty INT, spare INT);
CREATE TABLE db.copy (id BIGINT, shop BIGINT, qty INT, note STRING);
CREATE TABLE db.totals (shop BIGINT, qty BIGINT, n BIGINT, spare INT, PRIMARY KEY (shop) NOT ENFORCED);
"""
LINES = (
    "SET 'pipeline.name' = 'lines'; INSERT INTO db.lines (id, city, qty) SELECT a.id, s.city, a.qty FROM db.a AS a "
    "LEFT JOIN db.shops FOR SYSTEM_TIME AS OF PROCTIME() AS s ON a.shop = s.shop"
)
TOTALS = "SET 'pipeline.name' = 'totals'; INSERT INTO db.totals (shop, qty, n) SELECT shop, SUM(qty), COUNT(*) FROM db.a GROUP BY shop"


@pytest.fixture
def db(store: Store, session: SqlSession) -> SqlSession:
    session.execute(TABLES)
    store.table("db.shops").upsert({"shop": [1, 2], "city": ["A", "B"], "zip": ["1", "2"]})
    return session


def append(store: Store, *ids: int, qty: int = 10) -> None:
    store.table("db.a").append({"id": list(ids), "shop": [i % 2 + 1 for i in ids], "qty": [qty] * len(ids), "note": ["n"] * len(ids)})


@pytest.mark.parametrize(
    ("statement", "job"),
    [
        ("db.a RENAME qty TO pieces", "lines"),
        ("db.a DROP shop", "lines"),
        ("db.shops RENAME city TO town", "lines"),
        ("db.shops RENAME shop TO no", "lines"),
        ("db.lines DROP qty", "lines"),
        ("db.totals RENAME n TO count_of", "totals"),
        ("db.totals RENAME shop TO no", "totals"),
    ],
)
def test_a_column_that_a_running_job_uses_is_not_renamed_or_dropped_and_the_job_is_named(store, db, statement, job):
    db.execute(f"{LINES}; {TOTALS}")
    name = statement.split()[0]
    before = store.describe(name)

    with pytest.raises(StatementRefused, match=rf"job {job} depends on a column of {name}.*STOP JOB {job} first"):
        db.execute(f"ALTER TABLE {statement}")

    assert store.describe(name) == before
    db.execute("STOP JOB lines; STOP JOB totals")
    db.execute(f"ALTER TABLE {statement}")
    assert store.describe(name) != before


def test_jobs_go_on_while_columns_that_they_do_not_use_come_and_go(store, db):
    db.execute(f"{LINES}; {TOTALS}; SET 'pipeline.name' = 'copy'; INSERT INTO db.copy SELECT * FROM db.a")
    worker = Worker(store)
    append(store, 1, 2)
    worker.run_until_idle()

    for statement in (
        "db.a ADD extra STRING", "db.a RENAME extra TO more", "db.a DROP more", "db.shops RENAME zip TO code", "db.shops DROP code",
        "db.lines DROP spare", "db.totals ADD y INT", "db.totals DROP spare", "db.copy ADD z INT",
    ):  # fmt: skip
        db.execute(f"ALTER TABLE {statement}")
        append(store, 3, 4, 5)
        worker.run_until_idle()

    assert {job: load_job(store, job).state for job in ("lines", "totals", "copy")} == dict.fromkeys(("lines", "totals", "copy"), "RUNNING")
    assert sink_rows(store, "db.totals") == [(1, 100, 10, None), (2, 190, 19, None)]
    assert Counter(store.table("db.lines").scan().read_all()["city"].to_pylist()) == {"A": 10, "B": 19}
    assert store.table("db.copy").scan().read_all().num_rows == 29
    again = "SET 'pipeline.name' = 'copy'; INSERT INTO db.copy SELECT * FROM db.a"
    assert "runs already" in db.execute(again)[-1].message


def test_a_job_that_reads_everything_uses_every_column(store, db):
    db.execute("SET 'pipeline.name' = 'copy'; INSERT INTO db.copy SELECT * FROM db.a")

    with pytest.raises(StatementRefused, match=r"job copy depends on a column of db\.a"):
        db.execute("ALTER TABLE db.a RENAME note TO remark")


def test_a_wider_type_is_taken_over_where_the_job_can_and_refused_where_it_cannot(store, db):
    db.execute(TOTALS)
    worker = Worker(store)
    append(store, 1, qty=2_000_000_000)
    worker.run_until_idle()
    db.execute("ALTER TABLE db.totals MODIFY spare BIGINT")
    append(store, 1)
    worker.run_until_idle()
    assert sink_rows(store, "db.totals") == [(2, 2_000_000_010, 2, None)]

    db.execute(LINES)
    with pytest.raises(StatementRefused, match=r"job lines depends on a column of db\.a: column qty of db\.lines is INT"):
        db.execute("ALTER TABLE db.a MODIFY qty BIGINT")
    db.execute("ALTER TABLE db.lines MODIFY qty BIGINT; ALTER TABLE db.a MODIFY qty BIGINT")
    append(store, 1, qty=2**40)
    worker.run_until_idle()

    assert sink_rows(store, "db.totals") == [(2, 2_000_000_010 + 2**40, 3, None)]
    assert max(store.table("db.lines").scan().read_all()["qty"].to_pylist()) == 2**40


def test_a_job_whose_batch_meets_the_change_is_planned_again_and_does_not_fail(store, db):
    db.execute("ALTER TABLE db.lines MODIFY qty BIGINT")
    db.execute(LINES)
    worker = Worker(store)
    append(store, 1)
    worker.run_once()
    assert store.table("db.lines").count() == 1

    db.execute("ALTER TABLE db.a MODIFY qty BIGINT")
    append(store, 2, qty=2**40)
    worker.run_once()  # still planned for INT
    assert load_job(store, "lines").state == "RUNNING"
    worker.run_until_idle()

    assert store.table("db.lines").scan().read_all()["qty"].to_pylist() == [10, 2**40]


def test_views_that_use_a_column_are_named_and_others_do_not_hinder(store, db):
    db.execute("CREATE VIEW db.v AS SELECT id, qty FROM db.a; CREATE VIEW db.all_of AS SELECT * FROM db.shops")

    db.execute("ALTER TABLE db.a DROP note")
    with pytest.raises(StatementRefused, match=r"view db\.v uses column qty of db\.a.*DROP VIEW db\.v first"):
        db.execute("ALTER TABLE db.a RENAME qty TO pieces")
    with pytest.raises(StatementRefused, match=r"view db\.all_of uses column zip of db\.shops"):
        db.execute("ALTER TABLE db.shops DROP zip")
    db.execute("DROP VIEW db.v; ALTER TABLE db.a RENAME qty TO pieces")


def test_a_materialized_view_is_named_and_follows_when_it_does_not_use_the_column(store, db):
    db.execute(
        "CREATE MATERIALIZED VIEW db.mv REFRESH MANUAL AS SELECT shop, SUM(qty) AS qty FROM db.a WHERE shop IS NOT NULL GROUP BY shop"
    )
    append(store, 1, 2)

    with pytest.raises(
        StatementRefused, match=r"materialized view db\.mv depends on a column of db\.a.*DROP MATERIALIZED VIEW db\.mv first"
    ):
        db.execute("ALTER TABLE db.a DROP qty")
    db.execute("ALTER TABLE db.a RENAME note TO remark; REFRESH MATERIALIZED VIEW db.mv")

    assert sink_rows(store, "db.mv") == [(1, 10), (2, 10)]


PK_TABLES = """
CREATE TABLE db.src (k BIGINT, grp BIGINT, v BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('bucket.num' = '2');
CREATE TABLE db.mirror (k BIGINT, v BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('bucket.num' = '2');
CREATE TABLE db.sums (grp BIGINT, v BIGINT, n BIGINT, PRIMARY KEY (grp) NOT ENFORCED);
SET 'pipeline.name' = 'mirror'; INSERT INTO db.mirror SELECT k, v FROM db.src;
SET 'pipeline.name' = 'sums'; INSERT INTO db.sums SELECT grp, SUM(v), COUNT(*) FROM db.src GROUP BY grp;
"""


def test_a_key_that_changes_before_and_after_it_moved_ends_with_its_last_row_in_one_micro_batch(store, session):
    session.execute(PK_TABLES)
    source, worker = store.table("db.src"), Worker(store)
    keys = list(range(60))
    for v in range(5):
        source.upsert({"k": keys, "grp": [k % 3 for k in keys], "v": [v] * 60})
    session.execute("ALTER TABLE db.src SET ('bucket.num' = '7')")
    source.upsert({"k": keys, "grp": [k % 4 for k in keys], "v": [-k for k in keys]})
    source.delete({"k": keys[::10]})

    worker.run_until_idle()

    left = [k for k in keys if k % 10]
    assert sorted(sink_rows(store, "db.mirror")) == [(k, -k) for k in left]
    assert sorted(sink_rows(store, "db.sums")) == [
        (g, -sum(k for k in left if k % 4 == g), sum(k % 4 == g for k in left)) for g in range(4)
    ]
    assert differing_jobs(store) == []
    session.execute("ALTER TABLE db.mirror SET ('bucket.num' = '5'); ALTER TABLE db.src SET ('bucket.num' = '1')")
    worker.run_until_idle()
    source.upsert({"k": [1], "grp": [9], "v": [9]})
    worker.run_until_idle()
    assert (1, 9) in sink_rows(store, "db.mirror")
    assert (9, 9, 1) in sink_rows(store, "db.sums")


def test_writers_readers_jobs_and_tiering_go_on_through_every_change(store, session, tmp_path):
    session.execute(PK_TABLES.replace("WITH ('bucket.num' = '2');", "WITH ('bucket.num' = '2', 'table.datalake.enabled' = 'true');", 1))
    model: dict[int, tuple[int, int]] = {}
    stop, failures = threading.Event(), []

    def guarded(work):
        def run() -> None:
            try:
                work()
            except BaseException as error:  # a thread of the test: its failure is the test's
                failures.append(error)
                raise

        return threading.Thread(target=run)

    def write() -> None:
        chance, table = random.Random(1), store.table("db.src")  # opened before any change
        while not stop.is_set():
            keys = chance.sample(range(200), 20)
            if chance.random() < 0.2:
                table.delete({"k": keys})
                for k in keys:
                    model.pop(k, None)
            else:
                rows = {"k": keys, "grp": [chance.randrange(5) for _ in keys], "v": [chance.randrange(100) for _ in keys]}
                table.upsert(rows)
                model.update({k: (g, v) for k, g, v in zip(*rows.values(), strict=True)})

    def read() -> None:
        table = store.table("db.src")
        while not stop.is_set():
            rows = table.read()
            assert rows.column_names == ["k", "grp", "v"]
            assert len(set(rows["k"].to_pylist())) == rows.num_rows

    worker, tierer = Worker(store), Tierer(store, tmp_path / "lake")

    def tier() -> None:
        while not stop.is_set():
            tierer.run_once(force=True)

    threads = [guarded(write), guarded(read), guarded(tier), guarded(lambda: worker.run_forever(stop))]
    for thread in threads:
        thread.start()
    try:
        for change in (
            "ADD extra STRING", "SET ('bucket.num' = '5')", "RENAME extra TO more", "DROP more", "ADD extra INT",
            "SET ('bucket.num' = '3')", "DROP extra",
        ):  # fmt: skip
            version = store.version()
            session.execute(f"ALTER TABLE db.src {change}")
            store.await_version(version + 8, 5.0)
            assert not failures
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not failures

    final = Worker(store)
    final.run_until_idle()
    final.close()
    tierer.run_once(force=True)
    expected = sorted((k, g, v) for k, (g, v) in model.items())
    rows = store.table("db.src").read(["k", "grp", "v"])
    assert sorted(zip(*rows.to_pydict().values(), strict=True)) == expected
    assert sorted(sink_rows(store, "db.mirror")) == [(k, v) for k, _, v in expected]
    groups = {g for _, g, _ in expected}
    assert sorted(sink_rows(store, "db.sums")) == [
        (g, sum(v for _, of, v in expected if of == g), sum(of == g for _, of, _ in expected)) for g in sorted(groups)
    ]
    tiered = union_read(connect_delta(), store, tmp_path / "lake", "db.src", ["k", "grp", "v"])
    assert sorted(zip(*tiered.to_pydict().values(), strict=True)) == expected
