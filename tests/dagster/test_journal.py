"""From the commit journal to sealed days: the decisions, and the sensor over a real store."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from dagster._core.definitions.sensor_definition import SensorExecutionData

from flashlake.orchestration import load_definitions
from flashlake.orchestration.journal import JournalCursor, follow, seal
from resources import StoreWarehouse
from storage_engine import connect
from storage_engine.api import CommitInfo
from storage_engine.schema.descriptor import TableBucket
from tests.dagster.shop import START, day, run_stream, sales

TODAY = "2017-01-05"


def commit(version: int, ms: int, table: str = "ods.t", **rows: int) -> CommitInfo:
    """A commit of `rows` rows per day; d1 is 2017-01-01."""
    ranges = {TableBucket(f"2017-01-0{name[1:]}", 0): (0, n) for name, n in rows.items()}
    return CommitInfo(version, ms, {table: ranges})


def sealed_days(cursor: JournalCursor, now_ms: int) -> list[tuple[str, str, int]]:
    return [(day.table, day.day, day.rows.n_rows) for day in seal(cursor, now_ms, TODAY, quiet_ms=1000, n_max=10)[0]]


def test_a_day_is_sealed_when_it_is_over_and_quiet() -> None:
    cursor = follow(JournalCursor(), [commit(1, 100, d1=5), commit(2, 900, d1=2, d4=1), commit(3, 950, d5=1)], ["ods.t"])

    assert sealed_days(cursor, now_ms=1899) == []
    assert sealed_days(cursor, now_ms=1900) == [("ods.t", "2017-01-01", 7), ("ods.t", "2017-01-04", 1)]  # the 5th is today


def test_a_late_row_opens_a_sealed_day_again() -> None:
    cursor = follow(JournalCursor(), [commit(1, 0, d1=5)], ["ods.t"])
    _, cursor = seal(cursor, 1000, TODAY, quiet_ms=1000, n_max=10)
    assert sealed_days(cursor, 99_000) == []

    cursor = follow(cursor, [commit(2, 5000, d1=1)], ["ods.t"])

    assert sealed_days(cursor, 99_000) == [("ods.t", "2017-01-01", 1)]


def test_other_tables_are_passed_over_and_the_cursor_survives_as_text() -> None:
    cursor = follow(JournalCursor(), [commit(7, 0, "ods.t", d1=1, d2=3), commit(8, 0, "x.state", d1=9)], ["ods.t"])

    again = JournalCursor.from_json(cursor.to_json())

    assert again == cursor
    assert again.version == 8
    assert {table for table, _ in again.open_days} == {"ods.t"}


def test_only_so_many_days_are_reported_at_once_and_none_is_lost() -> None:
    cursor = follow(JournalCursor(), [commit(1, 0, d1=1, d2=1, d3=1)], ["ods.t"])

    first, cursor = seal(cursor, 5000, TODAY, quiet_ms=0, n_max=2)
    second, cursor = seal(cursor, 5000, TODAY, quiet_ms=0, n_max=2)

    assert [day.day for day in (*first, *second)] == ["2017-01-01", "2017-01-02", "2017-01-03"]
    assert cursor.open_days == {}


def tick(project: Path, instance: dg.DagsterInstance, cursor: str | None) -> SensorExecutionData:
    defs = load_definitions(project / "assets", start=START, journal_quiet_s=0.0)
    (sensor,) = defs.sensors
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"warehouse": StoreWarehouse(project=str(project))})
    return sensor.evaluate_tick(context)


def test_the_sensor_reports_each_sealed_day_of_source_and_derived_tables_once(project: Path) -> None:
    with connect(f"file://{project}/data/store") as store:
        store.table("ods.sales").append(sales(day(2), "1.00", "2.00"))
        store.table("ods.sales").append(sales(day(0), "1.00"))
        store.table("ods.sales").append(sales("1999-01-01", "1.00"))  # before the first partition: data, but no partition
        run_stream(store)
        version = store.version()

    with dg.instance_for_test() as instance:
        first = tick(project, instance, None)
        second = tick(project, instance, first.cursor)

    reported = {(event.asset_key.to_user_string(), event.partition): event.metadata["log_rows"].value for event in first.asset_events}
    assert reported == {("ods/sales", day(2)): 2, ("dwd/sale", day(2)): 2, ("dws/shop_day", day(2)): 1, ("dws/shop_best", day(2)): 1}
    assert JournalCursor.from_json(first.cursor).version == version
    assert second.asset_events == []
    assert "none sealed" in str(second.skip_message)


def test_a_store_that_was_made_anew_is_followed_from_its_start(project: Path) -> None:
    with connect(f"file://{project}/data/store") as store:
        store.table("ods.sales").append(sales(day(2), "1.00"))

    with dg.instance_for_test() as instance:
        result = tick(project, instance, JournalCursor(10_000).to_json())

    assert [event.partition for event in result.asset_events] == [day(2)]


def test_a_store_that_is_down_is_a_skipped_tick_and_moves_no_cursor(project: Path) -> None:
    (project / "flashlake.toml").write_text('[store]\nurl = "flashlake://127.0.0.1:1"\n')

    with dg.instance_for_test() as instance:
        result = tick(project, instance, None)

    assert "127.0.0.1:1" in str(result.skip_message)
    assert not result.cursor
