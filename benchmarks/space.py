"""Space: what cleaning gives back, what it writes for that, how long writers wait meanwhile, and what joined frames cost to scan.

Run with the others (make bench), or alone: python -m benchmarks.space [--quick]. Every result is checked before it counts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import HEADER, Case, in_turn
from benchmarks.rows import ORDER_DDL, order_batch
from storage_engine.client.store import Store
from storage_engine.connection import wrap
from storage_engine.engine.embedded import EmbeddedBackend, SyncMode

BATCH = 10_000
HOUR_MS = 3_600_000
OVERWRITES = 10


class _Clock:
    """The store's clock, so that a time to live passes in no time."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


def _opened(root: Path, name: str, clock: _Clock, sync: SyncMode = "none") -> tuple[Store, EmbeddedBackend]:
    shutil.rmtree(root / name, ignore_errors=True)
    backend = EmbeddedBackend.open(root / name, sync=sync, now_ms=clock, maintenance=False)
    store = wrap(backend)
    store.execute(ORDER_DDL.rstrip().rstrip(";"))
    store.execute("ALTER TABLE bench.orders SET ('table.log.ttl' = '1h')")
    return store, backend


def _log_bytes(root: Path, name: str) -> int:
    return sum(path.stat().st_size for path in (root / name / "log").iterdir())


def _overwrite(store: Store, n_rows: int, seed: int) -> None:
    table = store.table("bench.orders")
    order = np.random.default_rng(seed).permutation(n_rows)
    for start in range(0, n_rows, BATCH):
        table.upsert(order_batch(order[start : start + BATCH], seed))


def overwritten(root: Path, n_rows: int) -> list[Case]:
    """A table written 1 + 10 times in full, each changelog expired and cleaned before the next: space at rest, and bytes written for it."""
    clock = _Clock()
    store, backend = _opened(root, "once", clock)
    _overwrite(store, n_rows, 0)
    store.close()
    live = _log_bytes(root, "once")

    store, backend = _opened(root, "space", clock)
    written = largest = 0
    for seed in range(OVERWRITES + 1):
        before = int(backend.core.log.end)
        _overwrite(store, n_rows, seed)
        written += int(backend.core.log.end) - before
        largest = max(largest, _log_bytes(root, "space"))
        clock.ahead_ms += 2 * HOUR_MS
        backend.clean()
    stats = backend.cleaning()
    assert store.table("bench.orders").count() == n_rows
    last = order_batch(np.random.default_rng(OVERWRITES).permutation(n_rows)[:BATCH], OVERWRITES)
    found = store.table("bench.orders").lookup({"order_id": last["order_id"]})
    assert all(found[name].combine_chunks().equals(last[name]) for name in last.schema.names)
    store.close()
    at_rest = _log_bytes(root, "space")
    rows = f"{n_rows:,} rows, {OVERWRITES} overwrites"
    mb = 1 / 1e6
    return [
        Case(f"space at rest, {rows}", "MB", [at_rest * mb], "the rows written once", [live * mb], "2 or less", higher_is_better=False),
        Case(f"space at most, {rows}", "MB", [largest * mb], "the rows written once", [live * mb], "-", higher_is_better=False),
        Case(
            f"bytes written, {rows}", "MB", [(written + stats.n_bytes_rewritten) * mb], "without cleaning", [written * mb], "2 or less",
            higher_is_better=False,
        ),
    ]  # fmt: skip


def pauses(root: Path, n_rows: int, runs: int) -> list[Case]:
    """How long an upsert of 1,000 rows, acknowledged after fsync, takes while the table is cleaned, against the same without cleaning."""
    clock = _Clock()
    store, backend = _opened(root, "pauses", clock, "commit")
    table = store.table("bench.orders")
    batches = [order_batch(np.random.default_rng(seed).choice(n_rows, 1000, replace=False), seed) for seed in range(20)]
    for seed in range(3):
        _overwrite(store, n_rows, seed)

    def write(is_over: threading.Event | None) -> list[float]:
        taken = []
        while (is_over is None and len(taken) < 300) or (is_over is not None and not is_over.is_set()):
            began = time.perf_counter()
            table.upsert(batches[len(taken) % 20])
            taken.append((time.perf_counter() - began) * 1000)
            time.sleep(0.002)
        return taken

    def cleaning(run: int) -> list[float]:
        _overwrite(store, n_rows, 10 + run)
        clock.ahead_ms += 2 * HOUR_MS
        before = backend.cleaning().n_bytes_rewritten
        is_over = threading.Event()
        taken: list[float] = []
        writer = threading.Thread(target=lambda: taken.extend(write(is_over)))
        writer.start()
        backend.clean()
        is_over.set()
        writer.join()
        assert backend.cleaning().n_bytes_rewritten > before
        assert len(taken) > 20
        return taken

    during, alone = [cleaning(i) for i in range(runs + 1)][1:], [write(None) for _ in range(runs + 1)][1:]
    store.close()

    def case(name: str, pick: float) -> Case:
        ours, peer = ([float(np.quantile(taken, pick)) for taken in lists] for lists in (during, alone))
        label = f"upsert of 1,000 rows (fsync) while cleaning, {name}"
        return Case(label, "ms", ours, "without cleaning", peer, "-", higher_is_better=False)

    return [case("p50", 0.5), case("p99", 0.99), case("slowest", 1.0)]


def joined(root: Path, n_rows: int, runs: int) -> list[Case]:
    """A log written in batches of 200 rows, as it was written against joined and compressed for rest: a scan of it, and its bytes."""
    clock = _Clock()
    stores = {}
    sizes: list[list[float]] = []
    for name in ("small", "joined"):
        store, backend = _opened(root, name, clock)
        columns = ORDER_DDL[ORDER_DDL.index("(") : ORDER_DDL.index("PRIMARY KEY")].rstrip().rstrip(",")
        store.execute(f"CREATE TABLE bench.log {columns})")
        for start in range(0, n_rows, 200):
            store.table("bench.log").append(order_batch(np.arange(start, start + 200), start))
        stores[name] = store
        if name == "joined":
            clock.ahead_ms += HOUR_MS
            backend.clean()
        frames = backend.core.buckets.index.bucket(store.describe("bench.log").table_id, 0, 0).entries
        sizes.append([float(frames["length"].sum()) / 1e6])

    def scan(name: str) -> float:
        began = time.perf_counter()
        assert sum(batch.num_rows for batch in stores[name].table("bench.log").scan()) == n_rows
        return n_rows / (time.perf_counter() - began)

    mine, other = in_turn(lambda _: scan("joined"), lambda _: scan("small"), runs)
    for store in stores.values():
        store.close()
    return [
        Case("scan of a log of batches of 200 rows, joined", "rows/s", mine, "as written", other, "-"),
        Case("bytes of that log, joined (zstd)", "MB", sizes[1], "as written (lz4)", sizes[0], "-", higher_is_better=False),
    ]


def cases(root: Path, scale: int, runs: int) -> list[Case]:
    """All of them; `scale` divides the rows."""
    return [*overwritten(root, 1_000_000 // scale), *pauses(root, 500_000 // scale, runs), *joined(root, 400_000 // scale, runs)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.space --quick")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one run: for a look, not for the record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = cases(Path(name), *((10, 1) if arguments.quick else (1, 3)))
    print(HEADER)
    for case in found:
        print(case.row())
    print(f"\n{os.cpu_count()} cores, median of pauses alone {statistics.median(found[3].peer):.2f} ms", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
