"""Logs expire when they may: after their time, not before their readers, and a late one is told what is gone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from storage_engine import Progress
from storage_engine.client.store import Store
from storage_engine.errors import InvalidOption, OffsetOutOfRange
from tests.engine.cleaning import (
    DDL,
    HOUR_MS,
    ONE,
    Clock,
    append,
    backend_of,
    opened,
)
from tests.engine.test_key_snapshots import crash


def test_a_log_expires_and_a_late_reader_is_told_how_many_rows_are_gone_and_since_when(store: Store, clock: Clock) -> None:
    append(store, clock, 100)
    before = store.table("c.log").scan(metadata=True).read_all().to_pylist()
    backend_of(store).clean()
    oldest = store.table("c.log").offsets("earliest")[ONE]

    assert store.table("c.log").count() == 300 - oldest
    assert 0 < oldest < 300
    assert store.table("c.log").scan(metadata=True).read_all().to_pylist() == before[oldest:]
    with pytest.raises(OffsetOutOfRange, match=rf"{oldest - 5:,} of these rows have expired, the last of them at 2023-11-1"):
        store.table("c.log").scan(start={ONE: 5}).read_all()


def test_offsets_go_on_after_everything_has_expired(clock: Clock, tmp_path: Path) -> None:
    store = opened(tmp_path / "s", clock)
    store.execute(DDL)
    append(store, clock, 10)
    clock.pass_ms(2 * HOUR_MS)
    backend_of(store).clean()
    assert store.table("c.log").offsets("earliest") == store.table("c.log").offsets("latest") == {ONE: 30}
    crash(store)
    for without in ("nothing", "CHECKPOINT"):
        (tmp_path / "s" / without).unlink(missing_ok=True)
        store = opened(tmp_path / "s", clock)
        assert store.table("c.log").offsets("latest") == {ONE: 30}
        crash(store)

    with opened(tmp_path / "s", clock) as again:
        again.table("c.log").append({"id": [1], "v": ["new"]})
        assert again.table("c.log").scan(metadata=True).read_all()["_log_offset"].to_pylist() == [30]


def test_retention_waits_for_readers_and_says_what_it_drops_when_it_has_waited_twice_as_long(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    append(store, clock, 10)
    consumer = store.table("c.log").consumer("slow")
    consumer.poll(max_rows=12)
    consumer.commit()
    clock.pass_ms(HOUR_MS + 600_000)

    assert backend_of(store).clean().n_rows_expired == 12
    assert store.table("c.log").offsets("earliest") == {ONE: 12}
    assert caplog.text == ""

    clock.pass_ms(HOUR_MS)
    with caplog.at_level(logging.WARNING):
        stats = backend_of(store).clean()

    assert (stats.n_rows_expired, stats.n_rows_expired_unread) == (30, 18)
    assert "18 rows expired that a job or consumer had yet to read" in caplog.text
    append(store, clock, 1)
    with pytest.raises(OffsetOutOfRange, match="18 of these rows have expired"):
        consumer.poll()


def test_a_tiered_table_keeps_what_the_lake_does_not_have(store: Store, clock: Clock) -> None:
    store.execute("ALTER TABLE c.log SET ('table.datalake.enabled' = 'true')")
    append(store, clock, 10)
    clock.pass_ms(24 * HOUR_MS)
    assert backend_of(store).clean().n_rows_expired == 0

    store.commit((), (Progress("tier:c.log", {"c.log": {ONE: 15}}),))

    assert backend_of(store).clean().n_rows_expired == 15
    assert store.table("c.log").offsets("earliest") == {ONE: 15}


def test_the_time_to_live_can_be_altered_and_switched_off(store: Store, clock: Clock) -> None:
    append(store, clock, 3)
    store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '-1')")
    clock.pass_ms(1000 * HOUR_MS)
    assert backend_of(store).clean().n_rows_expired == 0

    store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '2h')")
    assert backend_of(store).clean().n_rows_expired == 9
    for ttl in ("0", "-2", "-7d"):
        with pytest.raises(InvalidOption, match=r"table\.log\.ttl"):
            store.execute(f"ALTER TABLE c.log SET ('table.log.ttl' = '{ttl}')")
