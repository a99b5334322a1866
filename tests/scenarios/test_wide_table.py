"""Scenario 2: six streams fill one table as one sum per log says, though the sixth and its column come while the others run."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from assets.scenarios.wide_table.events import LOGS, Events
from assets.scenarios.wide_table.expected import expected
from assets.scenarios.wide_table.scenario import TABLE, add_sixth_stream, check, deploy, events_of, writer
from storage_engine import Store
from storage_engine.stream import Worker, load_jobs

NOW = datetime(2017, 1, 2, tzinfo=UTC)


def test_a_column_and_its_stream_are_added_while_five_run(store: Store) -> None:
    deploy(store)
    events = events_of(4, NOW, n_shops=50)
    write, worker = writer(store, events), Worker(store, n_rows_max=3_000)
    cuts = sorted(np.random.default_rng(4).choice(np.arange(1, 60_000), 12, replace=False).tolist())
    begin = 0
    for number, end in enumerate([*cuts, 60_000]):
        write(begin, end)
        begin = end
        worker.run_once(ignore_schedule=True)  # jobs stay behind: the column comes in the middle of their input
        if number == 6:
            running = {name: job.submitted_ms for name, job in load_jobs(store).items()}
            add_sixth_stream(store)
    worker.run_until_idle()
    found = check(store, events, 60_000)
    assert found.holds
    assert found.n_expected == 100  # 50 shops, two hours
    jobs = load_jobs(store)
    assert {name: jobs[name].submitted_ms for name in running} == running  # the five went on as they were
    assert [job.state for job in jobs.values()] == ["RUNNING"] * 6
    assert store.table(TABLE).read(["gmv"])["gmv"].null_count < found.n_expected


def test_the_independent_answer_counts_each_event_once() -> None:
    events = Events(9, n_shops=7, day="20170102")
    table = expected(events, 10_000)
    for log, column in LOGS.items():
        name = "gmv" if log == "payment_log" else column
        assert pa.compute.sum(table[name]).as_py() == events.drawn(log, 0, 10_000).values.sum()


def test_events_are_the_same_however_they_are_cut() -> None:
    events = Events(9, n_shops=7, day="20170102")
    for log in LOGS:
        whole = events.rows(log, 0, 1_000)
        assert pa.concat_tables([events.rows(log, a, b) for a, b in ((0, 1), (1, 437), (437, 1_000))]) == whole
