"""INSERT INTO ... VALUES: a constant is stored as it is, or refused by name. Nothing is rounded on the way."""

from __future__ import annotations

import datetime
from decimal import Decimal

import pytest

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker
from tests.stream.comparing import sink_rows

TABLE = """
CREATE TABLE db.v (id BIGINT, t TINYINT, i INT, d DECIMAL(5, 2), x DOUBLE, s STRING, ts TIMESTAMP(3), z TIMESTAMP(0), l TIMESTAMP_LTZ(3),
dt DATE, b BOOLEAN, PRIMARY KEY (id) NOT ENFORCED)
"""
AT = datetime.datetime.fromisoformat("2020-01-01 23:59:59")


@pytest.fixture
def db(session: SqlSession) -> SqlSession:
    session.execute(TABLE)
    return session


@pytest.mark.parametrize(
    ("column", "written", "stored"),
    [
        ("t", "-128", -128),
        ("i", "-2147483648", -2147483648),
        ("i", "7 / 2", 3),
        ("i", "CAST(2.5 AS INT)", 2),
        ("d", "1.005", Decimal("1.01")),
        ("d", "-1.005", Decimal("-1.01")),
        ("d", "7", Decimal("7.00")),
        ("x", "1.5", 1.5),
        ("x", "1e3", 1000.0),
        ("ts", "'2020-01-01 23:59:59.9999'", AT.replace(microsecond=999_000)),
        ("ts", "TIMESTAMP '2020-01-01 23:59:59.999999'", AT.replace(microsecond=999_000)),
        ("z", "'2020-01-01 23:59:59.9'", AT),
        ("l", "TO_TIMESTAMP_LTZ(1577923199999, 3)", AT.replace(microsecond=999_000, tzinfo=datetime.UTC)),
        ("dt", "'2020-01-01'", datetime.date(2020, 1, 1)),
        ("b", "TRUE", True),
        ("s", "NULL", None),
    ],
)
@pytest.mark.parametrize("form", ["VALUES (1, {})", "SELECT 1, {}"])
def test_a_constant_is_stored_as_it_is_and_times_are_cut(
    store: Store, db: SqlSession, form: str, column: str, written: str, stored: object
):
    db.execute(f"INSERT INTO db.v (id, {column}) {form.format(written)}")
    assert store.table("db.v").lookup({"id": [1]})[column].to_pylist() == [stored]


@pytest.mark.parametrize(
    ("column", "written", "says"),
    [
        ("i", "1.5", r"column i of db\.v is INT, the value 1\.5 is DECIMAL"),
        ("i", "-1.5", r"the value -1\.5 is DECIMAL"),
        ("i", "1e0", "the value 1e0 is DOUBLE"),
        ("i", "3000000000", "the value 3000000000, which is out of its range"),
        ("t", "128", "the value 128, which is out of its range"),
        ("id", "99999999999999999999", "out of its range|cannot take"),
        ("i", "'7.9'", "the value '7.9' is STRING"),
        ("d", "999.999", r"column d of db\.v is DECIMAL\(5, ?2\) and cannot take 999\.999"),
        ("s", "5", "the value 5 is INT|out of its range"),
        ("b", "1", "column b"),
        ("dt", "'20200101'", r"column dt of db\.v is DATE and cannot take '20200101'"),
        ("ts", "'yesterday'", r"column ts of db\.v is TIMESTAMP\(3\) and cannot take 'yesterday'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(store: Store, db: SqlSession, column: str, written: str, says: str) -> None:
    columns, row = ("id, i", f"{written}, 0") if column == "id" else (f"id, {column}", f"1, {written}")
    with pytest.raises(StatementRefused, match=says):
        db.execute(f"INSERT INTO db.v ({columns}) VALUES ({row})")
    assert sink_rows(store, "db.v") == []


def test_a_job_cuts_times_as_a_cast_does(store: Store, db: SqlSession) -> None:
    db.execute(
        "CREATE TABLE db.fine (id BIGINT, ts TIMESTAMP(6)); SET 'pipeline.name' = 'j';INSERT INTO db.v (id, ts) SELECT id, ts FROM db.fine"
    )
    store.table("db.fine").append({"id": [1], "ts": [AT.replace(microsecond=999_999)]})
    Worker(store).run_until_idle()
    assert store.table("db.v").lookup({"id": [1]})["ts"].to_pylist() == [AT.replace(microsecond=999_000)]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("TIMESTAMP '2020-01-01 00:00:00' + INTERVAL '1-2' YEAR TO MONTH", r"INTERVAL '14' MONTH"),
        ("TIMESTAMP '2020-01-01 00:00:00' + INTERVAL '1 10:00:00' DAY TO SECOND", "a whole number of one unit"),
        ("TIMESTAMP '2020-01-01 00:00:00' + INTERVAL '1.5' SECOND", r"INTERVAL '1500' MILLISECOND"),
        ("INTERVAL '1' DAY + INTERVAL '2' HOUR", r"\+ does not take INTERVAL and INTERVAL"),
        ("INTERVAL '1' DAY - TIMESTAMP '2020-01-01 00:00:00'", "- does not take INTERVAL and TIMESTAMP"),
        ("'2020-01-01' + INTERVAL '1' DAY", r"\+ does not take STRING and INTERVAL"),
        ("TIME '10:00:00' + INTERVAL '1' DAY", r"\+ does not take TIME and INTERVAL of DAYs"),
    ],
)
def test_intervals_that_cannot_be_computed_are_refused_when_submitted(db: SqlSession, expression: str, says: str) -> None:
    with pytest.raises(StatementRefused, match=says):
        db.execute(f"INSERT INTO db.v (id, ts) VALUES (1, {expression})")
    with pytest.raises(StatementRefused, match=says):
        db.execute(f"INSERT INTO db.v (id, ts) SELECT id, {expression} FROM db.v")


def test_a_time_is_moved_by_hours_minutes_and_seconds(store: Store, session: SqlSession) -> None:
    session.execute("CREATE TABLE db.hours (id BIGINT, h TIME)")
    session.execute("INSERT INTO db.hours VALUES (1, TIME '10:00:00' + INTERVAL '3' MINUTE), (2, TIME '10:00:00' - INTERVAL '1' HOUR)")
    assert sink_rows(store, "db.hours") == [(1, datetime.time(10, 3)), (2, datetime.time(9))]


def test_row_number_between_two_bounds_is_bounded(store: Store, session: SqlSession) -> None:
    session.execute(
        "CREATE TABLE db.e (id BIGINT, k INT, v INT, PRIMARY KEY (id) NOT ENFORCED);"
        "CREATE TABLE db.top (k INT, rn BIGINT, v INT, PRIMARY KEY (k, rn) NOT ENFORCED);"
        "INSERT INTO db.e VALUES (1, 1, 50), (2, 1, 40), (3, 1, 30), (4, 1, 20), (5, 1, 10); SET 'pipeline.name' = 'j';"
        "INSERT INTO db.top SELECT k, rn, v FROM (SELECT k, v, ROW_NUMBER() OVER (PARTITION BY k ORDER BY v DESC) AS rn FROM db.e) "
        "WHERE rn BETWEEN 2 AND 4"
    )
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.top") == [(1, 2, 40), (1, 3, 30), (1, 4, 20)]
    store.table("db.e").delete({"id": [1]})
    Worker(store).run_until_idle()
    assert sink_rows(store, "db.top") == [(1, 2, 30), (1, 3, 20), (1, 4, 10)]
