"""`python -m benchmarks.streams [CASE...]`: rows per second of stream jobs from a log to their sink, in real processes, exactly once."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import storage_engine
from benchmarks.server import Server
from benchmarks.streams.cases import CASES, EVENTS, NEXMARK, USER_MAP, StreamCase
from benchmarks.streams.events import nexmark_events, shop_events

BATCH = 50_000
HEADER = (
    "| case | rows | submitted to last result, rows/s | first to last, rows/s | Flink's rate | ratio | asked | CPU s worker / server "
    "| peak MB worker / server | rows of the sink | equal to batch |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams",
        description="Events wait in the store's logs; a job is submitted; the clock stops when its last result can be read.",
        epilog="example: python -m benchmarks.streams q4 q7 --rows 1000000",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="words of a case's name, such as q4 or minute (default: all)")
    parser.add_argument("--rows", type=int, default=5_000_000, metavar="N", help="events (default %(default)s)")
    parser.add_argument("--users", type=int, default=200_000, metavar="N", help="users of the shop events (default %(default)s)")
    parser.add_argument("--no-check", action="store_true", help="do not compare with the batch computation")
    given = parser.parse_args()
    chosen = [case for case in CASES if not given.cases or any(word in case.name.split() for word in given.cases)]
    if not chosen:
        parser.error(f"no case has one of these words: {' '.join(given.cases)}")
    print(HEADER)
    is_equal = True
    for case in chosen:
        with tempfile.TemporaryDirectory(prefix="flashlake-streams-") as name:
            line, equal = measured(case, Path(name), given.rows, given.users, is_checked=not given.no_check)
        is_equal &= equal
        print(line, flush=True)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; commits synced to disk")
    return 0 if is_equal else 1


def measured(case: StreamCase, root: Path, n_rows: int, n_users: int, *, is_checked: bool) -> tuple[str, bool]:
    """A line of the table, and whether the sink is what the batch says."""
    server = Server(root / "store")
    try:
        with storage_engine.connect(server.url) as store:
            for statement in (EVENTS, NEXMARK, USER_MAP, f"CREATE TABLE bench.sink {case.sink}"):
                store.execute(statement)
            _load(store, n_rows, n_users, is_nexmark=case.is_nexmark)
            with _worker(server.url) as worker:
                before = server.cpu_s()
                began = time.perf_counter()
                store.execute(f"SET 'pipeline.name' = 'bench'; INSERT INTO bench.sink {case.columns} {case.select}")
                first_s, last_s = _followed(store, case.name)
                cpu = (_cpu_s(worker), server.cpu_s() - before)
                memory = (_peak_mb(worker), server.rss_mb("VmHWM"))
            submitted = last_s - began
            n_sink = store.table("bench.sink").count()
            equal = _differing(store) == 0 if is_checked else True
    finally:
        server.stop()
    rate = n_rows / submitted
    steady = n_rows / (last_s - first_s) if last_s - first_s > 0.05 else rate
    shown = [
        case.name, f"{n_rows:,}", f"{rate:,.0f}", f"{steady:,.0f}", f"{case.flink_rows_per_s:,.0f}",
        f"**{steady / case.flink_rows_per_s:.2f}**", f"{case.factor:g}x", f"{cpu[0]:.1f} / {cpu[1]:.1f}",
        f"{memory[0]:.0f} / {memory[1]:.0f}", f"{n_sink:,}", ("yes" if equal else "NO") if is_checked else "-",
    ]  # fmt: skip
    return f"| {' | '.join(shown)} |", equal


def _load(store: storage_engine.Store, n_rows: int, n_users: int, *, is_nexmark: bool) -> None:
    for start in range(0, n_rows, BATCH):
        stop = min(start + BATCH, n_rows)
        parts = nexmark_events(start, stop) if is_nexmark else {"events": shop_events(start, stop, n_rows, n_users)}
        for name, rows in parts.items():
            store.table(f"bench.{name}").append(rows)
        print(f"\r  {stop:,} events", end="", file=sys.stderr)
    print(file=sys.stderr)


def _followed(store: storage_engine.Store, name: str, timeout_s: float = 900.0) -> tuple[float, float]:
    """When the job's first and last commits could be read (perf_counter seconds)."""
    first_s = last_s = 0.0
    latest: dict[str, object] | None = None
    deadline = time.perf_counter() + timeout_s
    version = store.version()
    while time.perf_counter() < deadline:
        recorded = store.progress("job:bench").get("job:bench")
        if recorded is not None and recorded.offsets:
            last_s = time.perf_counter()
            first_s = first_s or last_s
            if latest is None:
                latest = {table: store.backend.offsets(table, "latest") for table in recorded.offsets}
            done = sum(sum(ends.values()) for ends in recorded.offsets.values())
            print(f"\r  {name}: {done:,} rows", end="", file=sys.stderr)
            if all(dict(recorded.offsets[table]) == dict(ends) for table, ends in latest.items()):  # type: ignore[call-overload]
                print(file=sys.stderr)
                return first_s, last_s
        jobs = store.execute("SHOW JOBS")[-1].rows
        if jobs is not None and "FAILED" in jobs.column("state").to_pylist():
            raise RuntimeError(f"the job failed: {jobs.to_pylist()}")
        version = store.backend.await_version(version, 0.5)
    raise TimeoutError(f"the job {name} did not end within {timeout_s} s")


def _differing(store: storage_engine.Store) -> int:
    from query_engine.verify import verify

    return sum(report.rows_differing for report in verify(store, None, "bench.sink"))


@contextmanager
def _worker(url: str) -> Iterator[int]:
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


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
