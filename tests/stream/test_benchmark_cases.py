"""Measured cases are right before they are fast: each equals its batch; the rates mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.processes import Usage, Watch
from benchmarks.streams.case import Measured
from benchmarks.streams.cases import CASES, chosen
from benchmarks.streams.loading import load
from benchmarks.streams.ours import tables
from benchmarks.streams.queries import QUERIES
from storage_engine import Store
from storage_engine.stream import SqlSession, Worker
from tests.stream.comparing import differing_jobs

N_EVENTS = 3_000
WINDOWED, N_EVENTS_OF_WINDOWS = ("q5", "q7", "q8", "q11"), 400_000  # 40 seconds of events: the first windows of ten are closed


def measured(n_first: float, first_s: float, last_s: float) -> Measured:
    return Measured(1_000, n_first, first_s, last_s, 0, Usage({}, {}, {}))


def test_the_steady_rate_leaves_out_what_was_read_before_its_clock_began() -> None:
    assert measured(n_first=200, first_s=2.0, last_s=4.0).steady_rate == 400
    assert measured(n_first=200, first_s=2.0, last_s=4.0).submit_rate == 250


def test_there_is_no_steady_rate_when_the_first_change_covers_nearly_everything() -> None:
    assert measured(n_first=1_000, first_s=2.0, last_s=2.0).steady_rate is None
    assert measured(n_first=950, first_s=2.0, last_s=2.1).steady_rate is None
    assert measured(n_first=950, first_s=2.0, last_s=2.1).rate == 1_000 / 2.1


def test_every_query_of_nexmark_is_a_case_and_words_choose_among_them() -> None:
    assert [case.name for case in QUERIES] == [f"q{i}" for i in range(23)]
    assert [case.name for case in chosen(["q4", "scenario"])] == [CASES[1].name, CASES[3].name, "q4"]


def test_memory_is_watched_per_process_with_mapped_files_apart(tmp_path: Path) -> None:
    import os

    with Watch({"me": os.getpid()}) as watch:
        held = bytearray(64 << 20)
        held[:: 1 << 12] = b"x" * (len(held) >> 12)
        usage = watch.usage()
    assert usage.own_mb["me"] > 64
    assert usage.peak_mb == usage.own_mb["me"] + usage.mapped_mb["me"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.split(",")[0].replace(" ", "_"))
def test_a_measured_case_equals_its_batch(store: Store, case) -> None:
    session = SqlSession(store)
    for statement in tables():
        session.execute(statement)
    session.execute(f"CREATE TABLE bench.sink {case.sink}")
    session.execute(f"INSERT INTO bench.sink {case.columns} {case.select}")
    n_events = N_EVENTS if case.name not in WINDOWED else N_EVENTS_OF_WINDOWS
    load(store, n_events, 500, is_nexmark=case.is_nexmark)
    Worker(store, n_rows_max=n_events // 3).run_until_idle()
    assert store.table("bench.sink").count() > 0
    assert differing_jobs(store) == []
