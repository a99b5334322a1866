"""Key index benchmarks: memory per key, restart after kill -9, and what an index on disk costs against one in memory.

Run: python -m benchmarks.keys [--keys 20000000] [--restart-rows 20000000] [--quick]. `make bench` runs a smaller size of each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

import storage_engine
from benchmarks.measure import HEADER, Case, in_turn
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.kv import KeyIndex

BATCH = 10_000
LOAD_BATCH = 50_000
DDL = """CREATE TABLE IF NOT EXISTS bench.keys (id BIGINT NOT NULL, user_id BIGINT, amount DOUBLE, status INT,
  PRIMARY KEY (id) NOT ENFORCED)"""


def rows(ids: np.ndarray, seed: int) -> pa.RecordBatch:
    n = len(ids)
    columns = [pa.array(ids), pa.array(ids * 7 + seed), pa.array(ids / 3), pa.array(np.full(n, seed % 5, np.int32))]
    return pa.RecordBatch.from_arrays(columns, names=["id", "user_id", "amount", "status"])


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill_index(n_keys: int) -> None:
    """In a process of its own: an index of `n_keys` random hashes, put in batches of 10,000. Prints bytes per key and milliseconds."""
    rng = np.random.default_rng(1)
    index = KeyIndex()
    index.put(rng.integers(1, 2**63, 100, dtype=np.uint64), np.arange(100))
    before = peak_rss = rss_bytes()
    seconds: list[float] = []
    worst = 0.0
    for start in range(0, n_keys, BATCH):
        hashes = np.unique(rng.integers(1, 2**64 - 1, BATCH, dtype=np.uint64))
        started = time.thread_time()  # of this process: what others take from the two cores is no pause of ours
        index.put(hashes, np.arange(start, start + len(hashes)))
        seconds.append(time.thread_time() - started)
        if start > n_keys // 2:
            worst = max(worst, index.n_bytes / index.n_keys)
            peak_rss = max(peak_rss, (rss_bytes() - before) * n_keys // index.n_keys)
    assert index.n_keys > 0.999 * n_keys
    settled = (rss_bytes() - before) / index.n_keys
    print(index.n_bytes / index.n_keys, worst, settled, peak_rss / n_keys, max(seconds) * 1e3, len(hashes) / np.median(seconds))


def memory(n_keys: int) -> list[Case]:
    words = _child("fill", str(n_keys)).split()
    n_bytes, worst, rss, peak_rss, pause_ms, _ = map(float, words)
    name = f"key index, {n_keys:,} keys"
    return [
        Case(
            f"{name}: arrays, at the end", "B per key", [n_bytes], "16 B of hash and offset", [16.0], "24 B or less", higher_is_better=False
        ),
        Case(f"{name}: arrays, at most while it grew", "B per key", [worst], "16 B", [16.0], "24 B or less", higher_is_better=False),
        Case(f"{name}: resident memory, at the end", "B per key", [rss], "16 B", [16.0], "24 B or less", higher_is_better=False),
        Case(f"{name}: resident memory, at most", "B per key", [peak_rss], "16 B", [16.0], "-", higher_is_better=False),
        Case(f"{name}: longest put of 10,000, CPU", "ms", [pause_ms], "one second", [1000.0], "-", higher_is_better=False),
    ]


def fill_store(directory: str, n_rows: int) -> None:
    """In a process that will be killed: `n_rows` rows in random order of keys, then updates until the end comes."""
    store = storage_engine.connect(f"file://{directory}", sync="none")
    store.execute(DDL)
    table = store.table("bench.keys")
    order = np.random.default_rng(1).permutation(n_rows)
    for start in range(0, n_rows, LOAD_BATCH):
        table.upsert(rows(order[start : start + LOAD_BATCH], start))
    rng = np.random.default_rng(2)
    for seed in range(n_rows // LOAD_BATCH // 5):
        table.upsert(rows(np.unique(rng.integers(0, n_rows, LOAD_BATCH)), seed))
    print("filled", flush=True)
    while True:
        time.sleep(60)


def first_read(directory: str, n_rows: int) -> None:
    """In a new process: seconds from opening the store to the first row, and from the start of this process."""
    started = time.perf_counter()
    store = storage_engine.connect(f"file://{directory}", sync="none")
    opened = time.perf_counter()
    found = store.table("bench.keys").lookup({"id": [n_rows // 2]})
    done = time.perf_counter()
    assert found.num_rows == 1
    backend = store.backend
    assert isinstance(backend, EmbeddedBackend)
    assert store.table("bench.keys").count() == n_rows
    print(done - started, opened - started, time.clock_gettime(time.CLOCK_MONOTONIC), rss_bytes() / 2**20, flush=True)
    os._exit(0)  # a close would write what the next run must not find


def restart(root: Path, n_rows: int, runs: int) -> list[Case]:
    """Seconds from process start to the first row read, after kill -9, against reading the whole log (no checkpoint, no snapshot)."""
    directory = root / "restart"
    shutil.rmtree(directory, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.keys", "--child", "store", str(directory), str(n_rows)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "filled"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    shutil.copytree(directory, root / "bare", copy_function=os.link, ignore=shutil.ignore_patterns("CHECKPOINT", "index", "spill", "LOCK"))

    def seconds(which: Path) -> float:
        started = time.clock_gettime(time.CLOCK_MONOTONIC)
        inside, opening, ended, rss_mb = map(float, _child("first-read", str(which), str(n_rows)).split())
        print(f"    {which.name}: {inside:.2f} s in the store ({opening:.2f} s to open), {rss_mb:,.0f} MB resident", file=sys.stderr)
        return ended - started

    def afresh(_: int) -> float:
        return seconds(root / "bare")

    ours, peer = in_turn(lambda _: seconds(directory), afresh, runs)
    name = f"restart after kill -9, {n_rows:,} rows, process start to first row"
    return [Case(name, "s", ours, "replay of the whole log", peer, "5 s or less at 20 M", higher_is_better=False)]


def spilled(root: Path, n_rows: int, runs: int) -> list[Case]:
    """Lookups of 100 keys and upserts of 10,000 rows with the index on disk, against the same table with it in memory."""
    stores = {}
    for name, bytes_max in (("disk", 1), ("memory", 1 << 40)):
        shutil.rmtree(root / name, ignore_errors=True)
        stores[name] = storage_engine.connect(f"file://{root / name}", sync="none", key_memory_bytes_max=bytes_max)
        stores[name].execute(DDL)
        for start in range(0, n_rows, LOAD_BATCH):
            stores[name].table("bench.keys").upsert(rows(np.arange(start, start + LOAD_BATCH), start))
    backend = stores["disk"].backend
    assert isinstance(backend, EmbeddedBackend)
    deadline = time.monotonic() + 300
    while not backend.key_memory().spilled:
        assert time.monotonic() < deadline, "the index has not moved to disk"
        time.sleep(0.05)
    rng = np.random.default_rng(3)
    draws = [pa.table({"id": rng.choice(n_rows, 100, replace=False)}) for _ in range(100)]
    batches = [rows(rng.choice(n_rows, BATCH, replace=False), i) for i in range(10)]

    def lookups(name: str) -> Callable[[int], float]:
        def run(_: int) -> float:
            table = stores[name].table("bench.keys")
            started = time.perf_counter()
            for draw in draws:
                assert table.lookup(draw).num_rows == 100
            return 100 * len(draws) / (time.perf_counter() - started)

        return run

    def upserts(name: str) -> Callable[[int], float]:
        def run(_: int) -> float:
            table = stores[name].table("bench.keys")
            started = time.perf_counter()
            for batch in batches:
                table.upsert(batch)
            return BATCH * len(batches) / (time.perf_counter() - started)

        return run

    looked = in_turn(lookups("disk"), lookups("memory"), runs)
    upserted = in_turn(upserts("disk"), upserts("memory"), runs)
    for store in stores.values():
        assert store.table("bench.keys").count() == n_rows
        store.close()
    label = f"{n_rows:,} rows, index on disk (RocksDB)"
    return [
        Case(f"lookup of 100 keys, {label}", "keys/s", looked[0], "index in memory", looked[1], "-"),
        Case(f"upsert of 10,000 rows, {label}", "rows/s", upserted[0], "index in memory", upserted[1], "-"),
    ]


def cases(root: Path, scale: int, runs: int, n_keys: int = 20_000_000, restart_rows: int = 5_000_000) -> list[Case]:
    return [
        *memory(n_keys // scale),
        *spilled(root, 1_000_000 // scale, runs),
        *restart(root, restart_rows // scale, runs),
    ]


def _child(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.keys", "--child", *arguments], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.keys --restart-rows 20000000")
    parser.add_argument("--keys", type=int, default=20_000_000, help="keys of the index whose memory is measured")
    parser.add_argument(
        "--restart-rows", type=int, default=5_000_000, help="rows of the table that is killed; 20 M take minutes and 2 GB of disk"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one run: for a look, not for the record")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        match arguments.child:
            case ["fill", n_keys]:
                fill_index(int(n_keys))
            case ["store", directory, n_rows]:
                fill_store(directory, int(n_rows))
            case ["first-read", directory, n_rows]:
                first_read(directory, int(n_rows))
        return 0
    scale, runs = (10, 1) if arguments.quick else (1, 3)
    with tempfile.TemporaryDirectory() as name:
        found = cases(Path(name), scale, runs, arguments.keys, arguments.restart_rows)
    print(HEADER)
    for case in found:
        print(case.row())
    return 0


if __name__ == "__main__":
    sys.exit(main())
