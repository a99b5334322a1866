"""Load: writers and readers against one server at once, bounded in time and in calls; throughput and latency percentiles of each.

Run: python -m benchmarks.load --seconds 20 [--url flashlake://127.0.0.1:9650]. Loopback only. Without --url it starts a server of its
own over a temporary directory and stops it. It ends by itself: at the end of the time, or when its calls are used up.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

import storage_engine
from benchmarks.peers.rows import EVENT_DDL, events
from benchmarks.rows import ORDER_DDL, order_batch
from storage_engine.client.flight import parse_url
from storage_engine.errors import FlashlakeError, InvalidConfiguration
from storage_engine.server import ServerProcess

SECONDS_MAX = 600
DATABASE = "bench_load"


@dataclass
class Worker:
    """One thread's calls: how long each took, how many rows it moved, what it could not do."""

    name: str
    seconds: list[float] = field(default_factory=list)
    n_rows: int = 0
    failures: list[str] = field(default_factory=list)


class Budget:
    """The end of the run: a time, and a number of calls that all workers share."""

    def __init__(self, seconds: float, n_calls: int) -> None:
        self._deadline = time.monotonic() + seconds
        self._left = n_calls
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0 and time.monotonic() < self._deadline


def run(worker: Worker, call: Callable[[int], int], budget: Budget, rate: float) -> None:
    """Call until the budget ends, `rate` times a second (0: as often as it answers). A call says how many rows it moved."""
    started = time.monotonic()
    n = 0
    while budget.take():
        if rate:
            pause = started + n / rate - time.monotonic()
            if pause > 0:
                time.sleep(pause)
        begun = time.perf_counter()
        try:
            worker.n_rows += call(n)
        except FlashlakeError as error:
            worker.failures.append(f"{type(error).__name__}: {error.what}")
        worker.seconds.append(time.perf_counter() - begun)
        n += 1


@contextmanager
def server_at(url: str | None, sync: str) -> Iterator[str]:
    if url is not None:
        host, _ = parse_url(url)
        if host != "localhost" and not ipaddress.ip_address(host.strip("[]")).is_loopback:
            raise InvalidConfiguration(f"{host} is not this machine", where="--url", next_step="Name a loopback address.")
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="flashlake-load-") as directory, ServerProcess(directory, sync=sync) as server:
        yield server.url


def workers(store: storage_engine.Store, given: argparse.Namespace) -> list[tuple[str, int, float, Callable[[int], Callable[[int], int]]]]:
    """Kind, threads, calls a second, and what makes the call of a thread (by its number)."""
    orders, log = store.table(f"{DATABASE}.orders"), store.table(f"{DATABASE}.events")
    n_keys = given.keys

    def upserts(seed: int) -> Callable[[int], int]:
        rng = np.random.default_rng(seed)
        batches = [order_batch(rng.integers(0, n_keys, given.batch), seed + i) for i in range(8)]
        return lambda i: (orders.upsert(batches[i % 8]), given.batch)[1]

    def appends(seed: int) -> Callable[[int], int]:
        batches = [events(given.batch, seed + i) for i in range(8)]
        return lambda i: (log.append(batches[i % 8]), given.batch)[1]

    def lookups(seed: int) -> Callable[[int], int]:
        keys = np.random.default_rng(seed).integers(0, n_keys, 4096).tolist()
        return lambda i: 1 if orders.lookup_one(keys[i % 4096]) else 0

    def batches_of_lookups(seed: int) -> Callable[[int], int]:
        draws = [{"order_id": np.random.default_rng(seed + i).integers(0, n_keys, 100)} for i in range(64)]
        return lambda i: orders.lookup(draws[i % 64]).num_rows

    def scans(_: int) -> Callable[[int], int]:
        position: dict[storage_engine.TableBucket, int] = {}

        def tail(_: int) -> int:
            stop = log.offsets()
            rows = log.scan(["user_id", "ts"], start=dict(position), stop=stop).read_all()
            position.update(stop)
            return rows.num_rows

        return tail

    return [
        ("upsert", given.writers, given.write_rate, upserts),
        ("append", given.writers, given.write_rate, appends),
        ("lookup of 1 key", given.readers, given.read_rate, lookups),
        ("lookup of 100 keys", given.readers, given.read_rate, batches_of_lookups),
        ("tail of the log", 1, min(given.read_rate or 20, 20), scans),
    ]


def report(done: list[Worker], seconds: float) -> None:
    print("| call | threads | calls | calls/s | rows/s | p50 ms | p99 ms | max ms | failed |\n|---|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(worker.name for worker in done):
        own = [worker for worker in done if worker.name == name]
        times = np.concatenate([np.array(worker.seconds) for worker in own]) * 1000
        n_rows, n_failed = sum(worker.n_rows for worker in own), sum(len(worker.failures) for worker in own)
        if len(times):
            p50, p99, longest = np.percentile(times, [50, 99, 100])
            figures = f"{len(times):,} | {len(times) / seconds:,.0f} | {n_rows / seconds:,.0f} | {p50:.3f} | {p99:.3f} | {longest:.1f}"
            print(f"| {name} | {len(own)} | {figures} | {n_failed} |")
    for text in sorted({text for worker in done for text in worker.failures})[:10]:
        print(f"failed: {text}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load",
        description="Mixed load on a server of this machine, bounded in time and calls.",
        epilog="example: python -m benchmarks.load --seconds 20 --writers 2 --readers 4 --write-rate 50",
    )
    parser.add_argument("--url", help="a running server on a loopback address (default: one of its own, over a temporary directory)")
    parser.add_argument("--sync", choices=["commit", "none"], default="commit", help="of its own server (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help=f"at most {SECONDS_MAX} (default %(default)s)")
    parser.add_argument("--calls", type=int, default=5_000_000, help="of all threads together (default %(default)s)")
    parser.add_argument("--writers", type=int, default=1, help="threads that upsert, and as many that append (default %(default)s)")
    parser.add_argument("--readers", type=int, default=1, help="threads that look up one key, and as many 100 keys (default %(default)s)")
    parser.add_argument("--write-rate", type=float, default=0.0, help="calls a second of each writer; 0: as often as it is answered")
    parser.add_argument("--read-rate", type=float, default=0.0, help="the same for readers")
    parser.add_argument("--batch", type=int, default=1000, help="rows of a write (default %(default)s)")
    parser.add_argument("--keys", type=int, default=100_000, help="rows of the table that is looked up (default %(default)s)")
    given = parser.parse_args(arguments)
    if not 0 < given.seconds <= SECONDS_MAX:
        parser.error(f"--seconds must be above 0 and at most {SECONDS_MAX}")
    with server_at(given.url, given.sync) as url, storage_engine.connect(url) as store:
        drop = f"DROP TABLE IF EXISTS {DATABASE}.orders; DROP TABLE IF EXISTS {DATABASE}.events"
        store.execute(drop)
        store.execute(ORDER_DDL.replace("bench.", f"{DATABASE}."))
        store.execute(EVENT_DDL.format(name=f"{DATABASE}.events", options="'table.log.arrow.compression.type' = 'ZSTD'"))
        try:
            with store.table(f"{DATABASE}.orders").writer() as writer:
                for start in range(0, given.keys, 10_000):
                    writer.upsert(order_batch(np.arange(start, min(start + 10_000, given.keys)), start))
            budget = Budget(given.seconds, given.calls)
            done: list[Worker] = []
            threads: list[threading.Thread] = []
            for name, n_threads, rate, maker in workers(store, given):
                for _ in range(n_threads):
                    done.append(Worker(name))
                    threads.append(threading.Thread(target=run, args=(done[-1], maker(len(done)), budget, rate)))
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            report(done, time.perf_counter() - started)
        finally:
            store.execute(drop)
    print(f"\n{url}, sync {given.sync if given.url is None else 'as its server'}, pyarrow {pa.__version__}")
    return 1 if any(worker.failures for worker in done) else 0


if __name__ == "__main__":
    sys.exit(main())
