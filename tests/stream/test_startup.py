"""Startup: a job begins where its hint says, keeps that start over restarts, and its proof begins there as well."""

from __future__ import annotations

import datetime as dt

import pytest

from storage_engine import Store
from storage_engine.errors import OffsetOutOfRange, StatementRefused
from storage_engine.stream import load_jobs
from storage_engine.stream.run.worker import Worker
from storage_engine.stream.session.session import SqlSession
from tests.stream.comparing import differing_jobs, sink_rows

DDL = """
CREATE TABLE db.log (x BIGINT, k BIGINT) WITH ('bucket.num' = '2', 'bucket.key' = 'k');
CREATE TABLE db.pk (k BIGINT, v BIGINT, PRIMARY KEY (k) NOT ENFORCED);
CREATE TABLE db.s (k BIGINT, n BIGINT, PRIMARY KEY (k) NOT ENFORCED);
CREATE TABLE db.copy (x BIGINT)
"""


def submit(store: Store, options: str, table: str = "db.log", job: str = "j") -> None:
    hint = f"/*+ OPTIONS({options}) */"
    SqlSession(store).execute(f"SET 'pipeline.name' = '{job}'; INSERT INTO db.s SELECT k, COUNT(*) FROM {table} {hint} GROUP BY k")


@pytest.fixture
def filled(store: Store) -> Store:
    SqlSession(store).execute(DDL)
    store.table("db.log").append({"x": [1, 2, 3], "k": [1, 2, 1]})
    return store


@pytest.mark.parametrize(("mode", "expected"), [("full", [(1, 3), (2, 1)]), ("earliest", [(1, 3), (2, 1)]), ("latest", [(1, 1)])])
def test_a_job_begins_where_its_mode_says(filled: Store, mode: str, expected: list[tuple[int, int]]) -> None:
    submit(filled, f"'scan.startup.mode' = '{mode}'")
    filled.table("db.log").append({"x": [4], "k": [1]})

    Worker(filled).run_until_idle()

    assert sink_rows(filled, "db.s") == expected
    assert differing_jobs(filled) == []


def test_a_job_begins_at_a_time_and_keeps_its_start_when_it_is_submitted_again(filled: Store) -> None:
    moment = filled.table("db.log").scan(metadata=True).read_all()["_commit_timestamp"].to_pylist()[-1]
    while (later := filled.table("db.log").append({"x": [9], "k": [7]}).version) and _stamp(filled, later) == moment:
        pass  # a commit in a later millisecond
    first_ms = int((_stamp(filled, later) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) / dt.timedelta(milliseconds=1))
    n_after = sum(1 for row in filled.table("db.log").scan(metadata=True).read_all().to_pylist() if row["_commit_timestamp"] > moment)

    submit(filled, f"'scan.startup.mode' = 'timestamp', 'scan.startup.timestamp' = '{first_ms}'")
    Worker(filled).run_until_idle()
    submit(filled, f"'scan.startup.mode' = 'timestamp', 'scan.startup.timestamp' = '{first_ms}'")
    filled.table("db.log").append({"x": [10], "k": [7]})
    Worker(filled).run_until_idle()

    assert sink_rows(filled, "db.s") == [(7, n_after + 1)]
    assert load_jobs(filled)["j"].starts["db.log"]
    assert differing_jobs(filled) == []


def _stamp(store: Store, version: int) -> dt.datetime:
    (info,) = store.commits(version - 1, 1)
    return dt.datetime.fromtimestamp(info.timestamp_ms / 1000, dt.UTC)


def test_a_statement_that_runs_once_takes_the_rows_of_its_start(filled: Store) -> None:
    SqlSession(filled).execute(
        "SET 'execution.runtime-mode' = 'batch'; INSERT INTO db.copy SELECT x FROM db.log "
        "/*+ OPTIONS('scan.startup.mode' = 'timestamp', 'scan.startup.timestamp' = '1970-01-02 00:00:00') */; "
        "INSERT INTO db.copy SELECT x + 100 FROM db.log /*+ OPTIONS('scan.startup.mode' = 'latest') */"
    )

    assert sorted(filled.table("db.copy").scan().read_all()["x"].to_pylist()) == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "table", "error", "words"),
    [
        ("'scan.startup.mode' = 'middle'", "db.log", StatementRefused, "full, earliest, latest or timestamp"),
        ("'scan.startup.mode' = 'latest'", "db.pk", StatementRefused, "never read"),
        ("'scan.startup.mode' = 'timestamp'", "db.log", StatementRefused, "Write both"),
        ("'scan.startup.timestamp' = '5'", "db.log", StatementRefused, "Write both"),
        ("'scan.startup.mode' = 'timestamp', 'scan.startup.timestamp' = 'noon'", "db.log", StatementRefused, "is no time"),
        ("'scan.startup.mode' = 'timestamp', 'scan.startup.timestamp' = '99999999999999'", "db.log", OffsetOutOfRange, "in the future"),
    ],
)
def test_a_start_that_cannot_be_is_refused_and_nothing_is_submitted(
    filled: Store, options: str, table: str, error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        submit(filled, options, table)

    assert load_jobs(filled) == {}


def test_a_table_read_twice_has_one_start(filled: Store) -> None:
    with pytest.raises(StatementRefused, match="from different starts"):
        SqlSession(filled).execute(
            "INSERT INTO db.copy SELECT x FROM db.log UNION ALL SELECT x FROM db.log /*+ OPTIONS('scan.startup.mode' = 'latest') */"
        )
