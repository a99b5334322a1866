"""Ours: a case in our store server and stream worker, as processes: submitted, followed to its last result, held to the batch."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import storage_engine
from benchmarks.processes import Usage, Watch
from benchmarks.server import Server
from benchmarks.streams.case import Measured, StreamCase
from benchmarks.streams.cases import EVENTS, EVENTS_WATERMARK, USER_MAP
from benchmarks.streams.loading import load
from benchmarks.streams.queries import NEXMARK, WATERMARK


@dataclass(frozen=True)
class Outcome:
    """What was measured, and in how many rows the sink differs from the batch (None: not compared)."""

    measured: Measured
    n_differing: int | None


def run(case: StreamCase, root: Path, n_rows: int, n_users: int, *, is_checked: bool) -> Outcome:
    """Load, submit, follow. Errors: StatementRefused when the planner does not keep the query."""
    with server(root / "store") as started, storage_engine.connect(started.url) as store:
        for statement in tables():
            store.execute(statement)
        store.execute(f"CREATE TABLE bench.sink {case.sink}")
        load(store, n_rows, n_users, is_nexmark=case.is_nexmark)
        with worker(started.url) as pid, Watch({"worker": pid, "server": started.pid}) as watch:
            began = time.perf_counter()
            store.execute(f"SET 'pipeline.name' = 'bench'; INSERT INTO bench.sink {case.columns} {case.select}")
            followed = _followed(store, case.name)
            usage = watch.usage()
        measured = _measured(followed, began, n_rows, store.table("bench.sink").count(), usage)
        return Outcome(measured, _differing(store) if is_checked else None)


def tables() -> tuple[str, ...]:
    """The tables of all cases, with the watermarks that Flink's have."""
    return EVENTS.format(watermark=EVENTS_WATERMARK), NEXMARK.format(watermark=WATERMARK), USER_MAP


@contextmanager
def server(directory: Path) -> Iterator[Server]:
    started = Server(directory)
    try:
        yield started
    finally:
        started.stop()


@contextmanager
def worker(url: str) -> Iterator[int]:
    """A stream worker as a process; its id."""
    process = subprocess.Popen([sys.executable, "-m", "storage_engine.stream", "--store", url], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while "ready" not in process.stderr.readline():
            if process.poll() is not None:
                raise RuntimeError("the worker ended")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


@dataclass(frozen=True)
class _Followed:
    """perf_counter seconds of the first and the last commit seen, and the share of the input behind the first."""

    first_s: float
    last_s: float
    share: float


def _followed(store: storage_engine.Store, name: str, timeout_s: float = 900.0) -> _Followed:
    """Wait until the job has read its inputs to the end: progress commits with the output, so what it covers can be read."""
    first: tuple[float, int] | None = None
    latest: dict[str, dict[object, int]] = {}
    deadline = time.perf_counter() + timeout_s
    version = store.version()
    while time.perf_counter() < deadline:
        recorded = store.progress("job:bench").get("job:bench")
        if recorded is not None and recorded.offsets:
            now = time.perf_counter()
            done = sum(sum(ends.values()) for ends in recorded.offsets.values())
            first = first or (now, done)
            if not latest:
                latest = {table: dict(store.backend.offsets(table, "latest")) for table in recorded.offsets}
            print(f"\r  {name}: {done:,} rows", end="", file=sys.stderr)
            if all(dict(recorded.offsets[table]) == ends for table, ends in latest.items()):
                print(file=sys.stderr)
                return _Followed(first[0], now, first[1] / done)
        jobs = store.execute("SHOW JOBS")[-1].rows
        if jobs is not None and "FAILED" in jobs.column("state").to_pylist():
            raise RuntimeError(f"the job failed: {jobs.to_pylist()}")
        version = store.backend.await_version(version, 0.5)
    raise TimeoutError(f"the job {name} did not end within {timeout_s} s")


def _measured(followed: _Followed, began: float, n_events: int, n_sink: int, usage: Usage) -> Measured:
    return Measured(n_events, followed.share * n_events, followed.first_s - began, followed.last_s - began, n_sink, usage)


def _differing(store: storage_engine.Store) -> int:
    from query_engine.verify import verify

    return sum(report.rows_differing for report in verify(store, None, "bench.sink"))
