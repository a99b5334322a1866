"""What idle jobs cost: CPU of a worker process and of the store's server with 100 jobs that have nothing to do. `make bench-stream-idle`

Three states of the store, each measured for some seconds by the processes' own CPU clocks (/proc/PID/stat):
    quiet           nobody writes
    other traffic   10 commits a second into a table that no job reads
    one source busy 10 commits a second into a source that a tenth of the jobs read
Before the clock starts every job has read its source; afterwards it is checked that a row is still read by every job.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import storage_engine
from storage_engine import Store
from storage_engine.server import ServerProcess

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def prepare(store: Store, n_jobs: int) -> None:
    """Jobs of three kinds over ten sources, a sink for each."""
    for n in range(10):
        store.execute(f"CREATE TABLE b.e{n} (id BIGINT, shop BIGINT, qty BIGINT)")
    store.execute("CREATE TABLE b.other (id BIGINT)")
    kinds = (
        ("(id BIGINT, qty BIGINT)", "SELECT id, qty FROM b.e{}"),
        ("(shop BIGINT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED)", "SELECT shop, SUM(qty) FROM b.e{} GROUP BY shop"),
        ("(shop BIGINT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED)", "SELECT shop, COUNT(DISTINCT id) FROM b.e{} GROUP BY shop"),
    )
    for n in range(n_jobs):
        columns, select = kinds[n % len(kinds)]
        store.execute(f"CREATE TABLE b.s{n} {columns}; SET 'pipeline.name' = 'j{n}'; INSERT INTO b.s{n} {select.format(n % 10)}")
    for n in range(10):
        write(store, f"b.e{n}", 0)


def write(store: Store, table: str, number: int) -> None:
    rows = {"id": [number], "shop": [1], "qty": [1]}
    store.table(table).append(rows if table != "b.other" else {"id": [number]})


def await_read(store: Store, n_jobs: int, timeout_s: float = 300.0) -> None:
    """Wait until every job has read its source to the end."""
    deadline = time.monotonic() + timeout_s
    while True:
        ends = {f"b.e{n}": store.backend.offsets(f"b.e{n}", "latest") for n in range(10)}
        progress = store.progress("job:")
        read = [item for item in progress.values() if all(offsets == ends[table] for table, offsets in item.offsets.items())]
        if len(read) == n_jobs:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(read)} of {n_jobs} jobs have read their source")
        store.await_version(store.version(), 0.2)


def measure(store: Store, worker: int, server: int, seconds: float, table: str | None) -> tuple[float, float]:
    """Percent of one core that worker and server use, while a writer commits into `table` ten times a second (None: nobody writes)."""
    pause = threading.Event()
    pause.wait(3.0)  # what came before is over
    before = cpu_s(worker), cpu_s(server)
    began = time.monotonic()
    number = 1
    while time.monotonic() - began < seconds:
        pause.wait(0.1)
        if table is not None:
            write(store, table, number)
            number += 1
    lasted = time.monotonic() - began
    return (cpu_s(worker) - before[0]) / lasted * 100, (cpu_s(server) - before[1]) / lasted * 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle_jobs")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ServerProcess(Path(scratch) / "store") as server:
        with storage_engine.connect(server.url) as store:
            prepare(store, options.jobs)
            _, alone = measure(store, os.getpid(), server.pid, options.seconds, "b.other")
            command = [sys.executable, "-m", "storage_engine.stream", "--store", server.url]
            with (Path(scratch) / "worker.log").open("wb") as log:
                worker = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                await_read(store, options.jobs)
                sys.stdout.write(f"server with the other traffic alone, before there was a worker: {alone:.2f} % of one core\n\n")
                sys.stdout.write(f"| {options.jobs} jobs | worker, % of one core | server, % of one core |\n|---|---|---|\n")
                for title, table in (("quiet", None), ("other traffic", "b.other"), ("one source busy", "b.e0")):
                    of_worker, of_server = measure(store, worker.pid, server.pid, options.seconds, table)
                    sys.stdout.write(f"| {title} | {of_worker:.2f} | {of_server:.2f} |\n")
                    sys.stdout.flush()
                sys.stdout.write(f"| resident memory, MB | {rss_mb(worker.pid):.0f} | {rss_mb(server.pid):.0f} |\n")
                for n in range(10):
                    write(store, f"b.e{n}", 10_000)
                await_read(store, options.jobs, 60)
            finally:
                worker.kill()
                worker.wait(30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
