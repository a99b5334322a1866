"""Jobs that people operate: states survive restarts, a statement is replaced with a clear choice, and the proof holds afterwards."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pyarrow as pa
import pytest

import storage_engine
from query_engine.verify import repair, verify
from storage_engine import Store
from storage_engine.errors import AlreadyExists, InvalidOption, ProgressConflict, StatementRefused
from storage_engine.stream import JobRunner, SqlSession, Worker, load_job
from storage_engine.stream.jobs.options import JobOptions, pause_s
from storage_engine.stream.jobs.upgrade import StaleDefinition
from tests.stream.comparing import query_rows, sink_rows

TABLES = """
CREATE TABLE db.events (id BIGINT, shop BIGINT, qty BIGINT) WITH ('bucket.num' = '2', 'bucket.key' = 'id');
CREATE TABLE db.totals (shop BIGINT, qty BIGINT, mean BIGINT, planned BIGINT, PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.lines (id BIGINT, what BIGINT);
CREATE TABLE db.latest (shop BIGINT, what BIGINT, PRIMARY KEY (shop) NOT ENFORCED);
SET 'pipeline.name' = 'job';
"""
SUM = "INSERT INTO db.totals (shop, qty) SELECT shop, SUM(qty) FROM db.events GROUP BY shop"
EVEN = "INSERT INTO db.totals (shop, qty) SELECT shop, SUM(qty) FROM db.events WHERE id % 2 = 0 GROUP BY shop"
MEANS = "INSERT INTO db.totals (shop, mean) SELECT shop, AVG(qty) {} FROM db.events GROUP BY shop"
LINES = "INSERT INTO db.lines SELECT id, {} FROM db.events"
KEEP, REPLAY, LATEST = (f"SET 'pipeline.upgrade' = '{choice}';" for choice in ("keep-position", "replay", "latest"))


@pytest.fixture
def db(session: SqlSession) -> SqlSession:
    session.execute(TABLES)
    return session


def sell(store: Store, first: int, n: int = 40) -> None:
    ids = list(range(first, first + n))
    store.table("db.events").append({"id": ids, "shop": [i % 5 for i in ids], "qty": [i * 7 % 11 for i in ids]})


def events(store: Store) -> pa.Table:
    return store.table("db.events").scan().read_all()


def run(store: Store) -> None:
    Worker(store).run_until_idle()
    assert load_job(store, "job").state == "RUNNING", load_job(store, "job").last_error


# states


def test_a_paused_job_rests_over_a_restart_and_goes_on_where_it_was(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    with storage_engine.connect(url) as store:
        store.execute(f"{TABLES} {SUM}")
        sell(store, 0)
        run(store)
        assert store.execute("PAUSE JOB job")[-1].message == "paused job job"
    with storage_engine.connect(url) as store:
        sell(store, 40)
        Worker(store).run_until_idle()
        assert load_job(store, "job").state == "PAUSED"
        assert store.execute("SHOW JOBS")[-1].rows["lag_rows"].to_pylist() == [40]
        with pytest.raises(StatementRefused, match="job job depends on a column"):
            store.execute("ALTER TABLE db.events DROP qty")
        store.execute("RESUME JOB job")
        run(store)
        oracle = "SELECT shop, sum(qty)::BIGINT FROM events GROUP BY shop"
        assert sink_rows(store, "db.totals", ["shop", "qty"]) == query_rows(oracle, events=events(store))


def test_a_failed_job_is_resumed_when_its_cause_is_mended(store: Store, db: SqlSession) -> None:
    db.execute(SUM)
    store.table("db.events").append({"id": [1], "shop": pa.array([None], pa.int64()), "qty": [5]})
    Worker(store).run_until_idle()
    assert load_job(store, "job").state == "FAILED"

    assert db.execute("RESUME JOB job")[-1].message == "resumed job job, which was FAILED"
    Worker(store).run_until_idle()
    assert load_job(store, "job").state == "FAILED"  # the cause is still there

    db.execute(f"SET 'pipeline.poison-row' = 'quarantine'; {SUM}")
    sell(store, 2)
    run(store)
    assert verify(store, None, "db.totals")[0].holds
    assert load_job(store, "job").last_error == ""


# upgrades


def test_another_statement_is_refused_with_the_choices_there_are(db: SqlSession) -> None:
    db.execute(SUM)
    with pytest.raises(AlreadyExists) as refusal:
        db.execute(EVEN)
    assert all(word in refusal.value.next_step for word in ("keep-position", "replay", "latest", "timestamp", "pipeline.name"))
    with pytest.raises(StatementRefused, match="cannot keep its position: what its state counts changes") as refusal:
        db.execute(f"{KEEP} {EVEN}")
    assert "'replay' begins anew" in refusal.value.next_step


def test_a_replayed_job_leaves_nothing_of_its_earlier_rows(store: Store, db: SqlSession) -> None:
    db.execute(SUM)
    store.table("db.totals").upsert({"shop": [0, 77], "planned": [5, 6]}, ["shop", "planned"])
    store.table("db.events").append({"id": [1], "shop": [99], "qty": [3]})  # a group that the new statement does not have
    sell(store, 2)
    run(store)

    db.execute(f"{REPLAY} {EVEN}")
    sell(store, 200)
    run(store)

    oracle = "SELECT shop, sum(qty)::BIGINT FROM events WHERE id % 2 = 0 GROUP BY shop"
    rows = [row for row in sink_rows(store, "db.totals", ["shop", "qty"]) if row[1] is not None]
    assert rows == query_rows(oracle, events=events(store))
    assert sink_rows(store, "db.totals", ["shop", "planned"])[0] == (0, 5)  # another writer's columns stay
    assert verify(store, None, "db.totals")[0].holds


def test_state_tables_are_new_ones_after_a_replay_and_the_same_ones_at_a_kept_position(store: Store, db: SqlSession) -> None:
    db.execute(MEANS.format(""))
    sell(store, 0)
    run(store)
    first = load_job(store, "job").state_tables
    db.execute(f"{KEEP} {MEANS.format('+ 1000')}")
    run(store)
    assert load_job(store, "job").state_tables == first
    assert verify(store, None, "db.totals")[0].rows_earlier == 5  # no group has changed since

    store.table("db.events").append({"id": [500], "shop": [3], "qty": [1]})
    run(store)
    (report,) = verify(store, None, "db.totals")
    assert (report.holds, report.rows_compared, report.rows_earlier) == (True, 5, 4)
    store.table("db.totals").upsert({"shop": [3], "mean": [-1]}, ["shop", "mean"])
    assert verify(store, None, "db.totals")[0].rows_differing == 1
    assert repair(store, None, "db.totals") == 5  # the bent row, and the four that were left as they were
    oracle = "SELECT shop, CAST(trunc(sum(qty) / count(*)) AS BIGINT) + 1000 FROM events GROUP BY shop"
    assert sink_rows(store, "db.totals", ["shop", "mean"]) == query_rows(oracle, events=events(store))

    db.execute(f"{REPLAY} INSERT INTO db.totals (shop, mean) SELECT shop, AVG(qty) - 1 FROM db.events WHERE qty > 2 GROUP BY shop")
    run(store)
    second = load_job(store, "job").state_tables
    assert set(first).isdisjoint(second)
    assert [name for name in store.tables() if "__state_" in name] == list(second)
    assert verify(store, None, "db.totals")[0].holds


def test_rows_of_each_earlier_statement_are_told_from_wrong_ones(store: Store, db: SqlSession) -> None:
    poison = "SET 'pipeline.poison-row' = 'quarantine';"
    text = "INSERT INTO db.latest SELECT shop, CAST(CASE WHEN qty = {0} THEN 5000000000 ELSE qty + {0} END AS INT) FROM db.events"
    sold: dict[int, tuple[int, int]] = {}
    for epoch in range(3):  # each statement overflows on another row
        db.execute(f"{poison} {KEEP} {text.format(epoch)}")
        shops = list(range(epoch, 6))  # later statements overwrite fewer shops
        store.table("db.events").append({"id": shops, "shop": shops, "qty": [epoch if shop == 5 else 7 for shop in shops]})
        sold |= {shop: (shop, 7 + epoch) for shop in shops if shop != 5}
        run(store)
    assert sink_rows(store, "db.latest") == sorted(sold.values(), key=repr)
    (report,) = verify(store, None, "db.latest")
    assert (report.rows_differing, report.rows_earlier, report.rows_quarantined) == (0, 2, 3)
    store.table("db.latest").upsert({"shop": [0], "what": [-1]})
    assert verify(store, None, "db.latest")[0].rows_differing == 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_log_holds_the_rows_of_each_statement_over_the_input_of_its_time(store: Store, db: SqlSession, seed: int) -> None:
    rng = random.Random(seed)
    db.execute(LINES.format("qty"))
    expected: list[tuple[int, int]] = []
    number = 0
    for epoch in range(4):
        if epoch:
            choice = rng.choice([KEEP, LATEST])
            sell(store, number, 7)  # not read by the statement before: a kept position reads them, the latest does not
            db.execute(f"{choice} {LINES.format(f'qty + {epoch}')}")
            expected += [(i, i * 7 % 11 + epoch) for i in range(number, number + 7)] if choice == KEEP else []
            number += 7
        sell(store, number, 20)
        expected += [(i, i * 7 % 11 + epoch) for i in range(number, number + 20)]
        number += 20
        run(store)
    assert sink_rows(store, "db.lines") == sorted(expected, key=repr)
    assert verify(store, None, "db.lines")[0].holds


def test_a_log_cannot_be_replayed_into(store: Store, db: SqlSession) -> None:
    db.execute(LINES.format("qty"))
    with pytest.raises(StatementRefused, match=r"db\.lines is a log: replaying would write its rows a second time"):
        db.execute(f"{REPLAY} {LINES.format('qty + 1')}")


def test_rows_of_two_jobs_cannot_be_told_apart(db: SqlSession) -> None:
    one = "INSERT INTO db.latest SELECT shop, qty FROM db.events WHERE id % 2 = {}"
    db.execute(f"{one.format(0)}; SET 'pipeline.name' = 'other'; {one.format(1)}; SET 'pipeline.name' = 'job'")
    with pytest.raises(StatementRefused, match=r"job other writes db\.latest too"):
        db.execute(f"{REPLAY} {one.format('0 AND id > 3')}")


def test_a_runner_of_the_earlier_statement_commits_nothing_after_the_switch(store: Store, db: SqlSession) -> None:
    db.execute(SUM)
    sell(store, 0)
    old = JobRunner(store, load_job(store, "job"), n_rows_max=10)
    old.step()
    db.execute(f"{REPLAY} {EVEN}")
    old.step()  # the new statement has not begun: what is written here is taken out with the rest
    new = JobRunner(store, load_job(store, "job"))
    with pytest.raises((ProgressConflict, StaleDefinition)):
        old.step()
    with pytest.raises(StaleDefinition):
        JobRunner(store, old.job)
    while new.step():
        pass
    assert verify(store, None, "db.totals")[0].holds
    old.close()
    new.close()


# options


def test_options_change_while_the_job_keeps_its_place(store: Store, db: SqlSession) -> None:
    db.execute(SUM)
    sell(store, 0)
    run(store)
    message = db.execute(f"SET 'table.exec.mini-batch.size' = '5'; SET 'table.exec.mini-batch.allow-latency' = '2 s'; {SUM}")[-1].message
    assert message == "job job goes on with other options"
    before = store.progress("job:job")["job:job"].detail["n_batches"]
    sell(store, 40)
    run(store)
    assert store.progress("job:job")["job:job"].detail["n_batches"] - before == 8
    assert load_job(store, "job").options == JobOptions(0.0, 2.0, 5)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("'table.exec.mini-batch.size' = '0'", "Give a number of rows"),
        ("'table.exec.mini-batch.allow-latency' = 'soon'", "is not a duration"),
        ("'pipeline.poison-row' = 'ignore'", "Use fail or quarantine"),
        ("'pipeline.upgrade' = 'yes'", "Use refuse or keep-position or replay or latest or timestamp"),
        ("'pipeline.micro-batch.max' = '1 s'", "is not known"),
    ],
)
def test_an_option_without_meaning_is_refused(db: SqlSession, setting: str, reason: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(reason)):
        db.execute(f"SET {setting}")


def test_bounds_that_contradict_each_other_are_refused_with_the_job(db: SqlSession) -> None:
    db.execute("SET 'pipeline.micro-batch.min' = '3 s'; SET 'table.exec.mini-batch.allow-latency' = '1 s'")
    with pytest.raises(InvalidOption, match="is longer than"):
        db.execute(SUM)


def test_the_interval_follows_the_traffic_within_its_bounds() -> None:
    options = JobOptions(interval_s_min=0.05, interval_s_max=0.5)
    assert pause_s(1, 0.001, 1_000, options) == pytest.approx(0.049)  # idle: the lower bound
    assert pause_s(500, 0.2, 1_000, options) == pytest.approx(0.2)  # under load: busy half of the time
    assert pause_s(900, 9.0, 1_000, options) == 0.5  # the upper bound
    assert pause_s(1_000, 0.2, 1_000, options) == 0.0  # behind: at once


def test_reports_say_what_a_job_keeps_and_how_fast_it_reads(store: Store, db: SqlSession) -> None:
    db.execute(MEANS.format(""))
    sell(store, 0)
    run(store)
    sell(store, 40, 3)
    (row,) = db.execute("SHOW JOBS")[-1].rows.to_pylist()
    assert (row["lag_rows"], row["state_rows"], row["n_rows_in"], row["n_rows_out"]) == (3, 5, 40, 5)
    assert row["lag_ms"] >= 0
    assert row["state_bytes"] > 0
    assert 0 < row["rows_per_s"] <= 4.0


def test_a_sink_that_was_altered_under_a_running_upgrade_is_not_mixed_up(store: Store, db: SqlSession) -> None:
    db.execute(SUM)
    sell(store, 0)
    run(store)
    db.execute("ALTER TABLE db.totals ADD extra BIGINT")
    db.execute(f"{REPLAY} INSERT INTO db.totals (shop, qty, extra) SELECT shop, SUM(qty), COUNT(*) FROM db.events GROUP BY shop")
    run(store)
    oracle = "SELECT shop, sum(qty)::BIGINT, count(*) FROM events GROUP BY shop"
    assert sink_rows(store, "db.totals", ["shop", "qty", "extra"]) == query_rows(oracle, events=events(store))
