"""Contract: jobs are dropped whole, whoever is killed in between; how a job is run is changed while it keeps its place."""

from __future__ import annotations

import itertools

import pytest

from query_engine.verify import verify
from storage_engine.errors import InvalidOption, StatementRefused, UnknownTable
from storage_engine.stream import Worker, load_job
from tests.meddling import meddled

pytestmark = pytest.mark.needs("jobs")

TOTALS = "INSERT INTO {db}.{sink} SELECT shop, SUM(qty), COUNT(DISTINCT id) FROM {db}.events GROUP BY shop"
ROWS = {"id": [1, 2, 2, 3], "shop": ["a", "a", "a", "b"], "qty": [1, 2, 3, 4]}
RESULT = [("a", 6, 2), ("b", 4, 1)]


class Killed(BaseException):
    """The client dies here: nothing it would have done afterwards is done."""


def die() -> None:
    raise Killed


def make(store, db: str) -> None:
    store.execute(f"CREATE TABLE {db}.events (id BIGINT, shop STRING, qty BIGINT)")
    store.table(f"{db}.events").append(ROWS)


def submit(store, db: str, name: str, sink: str) -> None:
    store.execute(f"CREATE TABLE {db}.{sink} (shop STRING, qty BIGINT, users BIGINT, PRIMARY KEY (shop) NOT ENFORCED)")
    store.execute(f"SET 'pipeline.name' = '{name}'; {TOTALS.format(db=db, sink=sink)}")


def totals(store, db: str, sink: str) -> list[tuple]:
    Worker(store).run_until_idle()
    return sorted(tuple(row.values()) for row in store.table(f"{db}.{sink}").read().to_pylist())


def traces(store, name: str) -> list[str]:
    """What is left of a job in the store: its definition, its progress, its state tables."""
    left = [kind for kind, names in (("definition", store.objects("job")), ("progress", store.progress(f"job:{name}"))) if names]
    return left + [table for table in store.tables() if "__state_" in table]


def test_a_dropped_job_leaves_its_rows_and_nothing_else(store, db):
    make(store, db)
    submit(store, db, "gone", "first")
    assert totals(store, db, "first") == RESULT
    assert {"definition", "progress"} < set(traces(store, "gone"))

    with pytest.raises(StatementRefused, match=r"job gone is RUNNING.*STOP JOB gone first"):
        store.execute("DROP JOB gone")
    store.execute("PAUSE JOB gone")
    with pytest.raises(StatementRefused, match=r"job gone is PAUSED.*STOP JOB gone first"):
        store.execute("DROP JOB gone")
    store.execute("STOP JOB gone")
    assert store.execute("DROP JOB gone")[-1].message == f"dropped job gone; its rows stay in table {db}.first"
    assert traces(store, "gone") == []
    assert totals(store, db, "first") == RESULT

    with pytest.raises(UnknownTable, match="there is no job gone"):
        store.execute("DROP JOB gone")
    assert store.execute("DROP JOB IF EXISTS gone")[-1].message == "there is no job gone"


def test_a_drop_that_is_killed_anywhere_leaves_a_whole_job_or_one_that_only_dropping_ends(own, db):
    make(own.store, db)
    states = set()
    for nth in itertools.count(1):
        submit(own.store, db, "job", f"sink{nth}")
        assert totals(own.store, db, f"sink{nth}") == RESULT
        own.store.execute("STOP JOB job")
        client, meddler = meddled(own.store, nth, die)
        if not _is_killed(client, "DROP JOB job"):
            break
        assert meddler.has_acted
        own.restart()

        state = load_job(own.store, "job").state
        states.add(state)
        if state == "STOPPED":
            own.store.execute("RESUME JOB job")
            own.store.table(f"{db}.events").append({"id": [9], "shop": ["c"], "qty": [1]})
            assert totals(own.store, db, f"sink{nth}") == [*RESULT, ("c", 1, 1)]
            own.store.execute(f"STOP JOB job; DROP JOB job; DROP TABLE {db}.events")
            make(own.store, db)
            continue
        assert state == "DROPPING"
        assert own.store.execute("SHOW JOBS")[-1].rows["state"].to_pylist() == ["DROPPING"]
        for statement in ("RESUME JOB job", TOTALS.format(db=db, sink=f"sink{nth}"), "ALTER JOB job SET ('pipeline.poison-row' = 'fail')"):
            with pytest.raises(StatementRefused, match="DROP JOB job again finishes it"):
                own.store.execute(f"SET 'pipeline.name' = 'job'; {statement}")
        assert totals(own.store, db, f"sink{nth}") == RESULT, "a job that is being dropped ran"
        own.store.execute("DROP JOB job")
        assert traces(own.store, "job") == []
    assert traces(own.store, "job") == []
    assert states == {"STOPPED", "DROPPING"}


def _is_killed(client, statement: str) -> bool:
    try:
        client.execute(statement)
    except Killed:
        return True
    return False


def test_a_new_job_under_a_dropped_name_begins_at_the_beginning_and_has_its_own_quarantine(store, db):
    store.execute(f"CREATE TABLE {db}.texts (id BIGINT, t STRING); CREATE TABLE {db}.a (id BIGINT, n BIGINT)")
    store.table(f"{db}.texts").append({"id": [1, 2], "t": ["1", "x"]})
    store.execute(
        f"SET 'pipeline.name' = 'again'; SET 'pipeline.poison-row' = 'quarantine'; "
        f"INSERT INTO {db}.a SELECT id, CAST(t AS BIGINT) FROM {db}.texts"
    )
    Worker(store).run_until_idle()
    store.execute("STOP JOB again; DROP JOB again")

    store.execute(f"CREATE TABLE {db}.b (id BIGINT, n BIGINT); INSERT INTO {db}.b SELECT id, id FROM {db}.texts")
    Worker(store).run_until_idle()
    assert sorted(store.table(f"{db}.b").scan().read_all()["id"].to_pylist()) == [1, 2]
    (report,) = verify(store, None, f"{db}.b")
    assert (report.holds, report.rows_compared) == (True, 2)
    store.execute("STOP JOB again; DROP JOB again")


def test_how_a_job_is_run_changes_while_it_keeps_its_place(store, db):
    store.execute(f"CREATE TABLE {db}.texts (id BIGINT, t STRING); CREATE TABLE {db}.numbers (id BIGINT, n BIGINT)")
    store.execute(f"SET 'pipeline.poison-row' = 'fail'; SET 'pipeline.name' = 'opt'; "
                  f"INSERT INTO {db}.numbers SELECT id, CAST(t AS BIGINT) FROM {db}.texts")  # fmt: skip
    texts = store.table(f"{db}.texts")
    texts.append({"id": [1], "t": ["1"]})
    worker = Worker(store)
    worker.run_until_idle()

    store.execute("ALTER JOB opt SET ('pipeline.poison-row' = 'quarantine', 'table.exec.mini-batch.size' = '7')")
    said = {row["property"]: row["value"] for row in store.execute("DESCRIBE JOB opt")[-1].rows.to_pylist()}
    assert (said["set pipeline.poison-row"], said["set table.exec.mini-batch.size"]) == ("quarantine", "7")
    texts.append({"id": [2, 3], "t": ["x", "3"]})
    worker.run_until_idle()
    assert sorted(store.table(f"{db}.numbers").scan().read_all()["id"].to_pylist()) == [1, 3]

    store.execute("ALTER JOB opt RESET ('pipeline.poison-row', 'table.exec.mini-batch.size')")
    assert not load_job(store, "opt").options.quarantines
    texts.append({"id": [4], "t": ["y"]})
    worker.run_until_idle()
    assert load_job(store, "opt").state == "FAILED"
    store.execute("DROP JOB opt")


def test_the_job_of_a_materialized_view_goes_after_the_view(store, db):
    make(store, db)
    name = f"{db}.per_shop"
    select = f"SELECT shop, COUNT(DISTINCT id) AS n FROM {db}.events WHERE shop IS NOT NULL GROUP BY shop"
    store.execute(f"CREATE MATERIALIZED VIEW {name} REFRESH ASYNC AS {select}")
    with pytest.raises(StatementRefused, match=f"DROP MATERIALIZED VIEW {name}"):
        store.execute(f"DROP JOB '{name}'")
    store.execute(f"DROP MATERIALIZED VIEW {name}; DROP JOB '{name}'")
    assert traces(store, name) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("SET ('pipeline.poison-rows' = 'fail')", "'pipeline.poison-rows' is no option of a running job.*pipeline.micro-batch.min"),
        ("SET ('pipeline.poison-row' = 'maybe')", "Use fail or quarantine"),
        ("SET ('table.exec.mini-batch.size' = '0')", "number of rows from 1 to"),
        ("SET ('pipeline.micro-batch.min' = '5 s', 'table.exec.mini-batch.allow-latency' = '1 s')", "is longer than"),
        ("SET ('table.exec.sink.not-null-enforcer' = 'DROP')", "changed by 'pipeline.upgrade'"),
        ("RESET ('pipeline.name')", "is no option of a running job"),
    ],
)
def test_an_option_that_is_not_known_or_not_right_is_refused_and_nothing_changes(store, db, change, says):
    make(store, db)
    submit(store, db, f"fixed_{db}", "sink")
    before = load_job(store, f"fixed_{db}")
    with pytest.raises(InvalidOption, match=says):
        store.execute(f"ALTER JOB fixed_{db} {change}")
    assert load_job(store, f"fixed_{db}") == before
    store.execute(f"STOP JOB fixed_{db}; DROP JOB fixed_{db}")
