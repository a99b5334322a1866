"""Store benchmarks: append, upsert, pruned scan, lookup and memory, against sqlite and Parquet, in one run.

Run: make bench (python -m benchmarks.store [--quick]). Every result is checked before it counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import storage_engine
from benchmarks import keys, reads, space
from benchmarks.measure import HEADER, Case, in_turn
from benchmarks.rows import ORDER_DDL, order_batch, wide_batch, wide_ddl
from benchmarks.server import Server

BATCH = 10_000


def _store(root: Path, name: str, sync: str) -> storage_engine.Store:
    shutil.rmtree(root / name, ignore_errors=True)
    return storage_engine.connect(f"file://{root / name}", sync=sync)


def upsert(root: Path, n_rows: int, runs: int, sync: str) -> Case:
    """Upsert with a full changelog, keys in random order and drawn with repetition, against sqlite's upsert (WAL, synchronous off)."""
    rng = np.random.default_rng(7)
    ids = [rng.integers(0, int(n_rows * 0.9), BATCH) for _ in range(n_rows // BATCH)]
    batches = [order_batch(part, i) for i, part in enumerate(ids)]
    total = sum(batch.num_rows for batch in batches)
    as_tuples = [list(zip(*(column.to_pylist() for column in batch.columns), strict=True)) for batch in batches]
    expected = len(np.unique(np.concatenate(ids)))

    def ours(_: int) -> float:
        with _store(root, "upsert", sync) as store:
            store.execute(ORDER_DDL)
            table = store.table("bench.orders")
            started = time.perf_counter()
            for batch in batches:
                table.upsert(batch)
            seconds = time.perf_counter() - started
            assert table.count() == expected
        return total / seconds

    def peer(_: int) -> float:
        path = root / "peer.sqlite"
        for suffix in ("", "-wal", "-shm"):
            Path(str(path) + suffix).unlink(missing_ok=True)
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b, c, d, e, f, g, h)")
        sql = (
            "INSERT INTO t VALUES (?,?,?,?,?,?,?,?) ON CONFLICT(a) DO UPDATE SET b=excluded.b, c=excluded.c, d=excluded.d, "
            "e=excluded.e, f=excluded.f, g=excluded.g, h=excluded.h"
        )
        started = time.perf_counter()
        for rows in as_tuples:
            db.execute("BEGIN")
            db.executemany(sql, rows)
            db.execute("COMMIT")
        seconds = time.perf_counter() - started
        assert db.execute("SELECT count(*) FROM t").fetchone()[0] == expected
        db.close()
        return total / seconds

    mine, other = in_turn(ours, peer, runs)
    label = "no fsync" if sync == "none" else "fsync per commit"
    return Case(f"upsert with changelog, batches of 10,000, {label}", "rows/s", mine, "sqlite WAL, sync off", other, "5x")


def append(root: Path, n_batches: int, runs: int) -> Case:
    """Append of 12-column batches of 64 k rows against writing the same batches to a Parquet file (snappy), neither synced."""
    batches = [wide_batch(65_536, 12, i) for i in range(n_batches)]
    total = sum(batch.num_rows for batch in batches)

    def ours(_: int) -> float:
        with _store(root, "append", "none") as store:
            store.execute(wide_ddl(12))
            table = store.table("bench.wide")
            started = time.perf_counter()
            for batch in batches:
                table.append(batch)
            seconds = time.perf_counter() - started
            assert table.count() == total
        return total / seconds

    def peer(_: int) -> float:
        path = root / "peer.parquet"
        started = time.perf_counter()
        with pq.ParquetWriter(path, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        seconds = time.perf_counter() - started
        assert pq.read_metadata(path).num_rows == total
        return total / seconds

    mine, other = in_turn(ours, peer, runs)
    return Case("append, 12 columns, batches of 65,536", "rows/s", mine, "Parquet writer (snappy)", other, "1.3x")


def pruned_scan(root: Path, n_batches: int, runs: int) -> Case:
    """CPU time of the server for reading 3 of 100 columns against reading all, over the wire."""
    with _store(root, "wide", "none") as store:
        store.execute(wide_ddl(100))
        table = store.table("bench.wide")
        distinct = [wide_batch(16_384, 100, i) for i in range(4)]
        for i in range(n_batches):
            table.append(distinct[i % 4])
    server = Server(root / "wide")
    try:
        with storage_engine.connect(server.url) as store:
            table = store.table("bench.wide")

            def cost(columns: list[str] | None, times: int) -> float:
                before = server.cpu_s()
                for _ in range(times):
                    n = sum(batch.num_rows for batch in table.scan(columns))
                    assert n == n_batches * 16_384
                return (server.cpu_s() - before) / times

            mine, other = in_turn(lambda _: cost(["c1", "c5", "c50"], 20), lambda _: cost(None, 3), runs)
    finally:
        server.stop()
    return Case("server CPU, 3 of 100 columns", "s per scan", mine, "all 100 columns", other, "0.10 or less", higher_is_better=False)


def lookup(root: Path, n_rows: int, runs: int) -> list[Case]:
    """Lookups of 100 keys, in process and over the wire, against sqlite's indexed reads in process."""
    with _store(root, "lookup", "none") as store:
        store.execute(ORDER_DDL)
        table = store.table("bench.orders")
        for start in range(0, n_rows, BATCH):
            table.upsert(order_batch(np.arange(start, start + BATCH), start))
        rng = np.random.default_rng(3)
        draws = [rng.choice(n_rows, 100, replace=False) for _ in range(200)]
        db = sqlite3.connect(":memory:")
        db.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b, c, d, e, f, g, h)")
        for start in range(0, n_rows, BATCH):
            batch = order_batch(np.arange(start, start + BATCH), start)
            db.executemany("INSERT INTO t VALUES (?,?,?,?,?,?,?,?)", zip(*(c.to_pylist() for c in batch.columns), strict=True))

        def timed(source: storage_engine.Table) -> float:
            started = time.perf_counter()
            for draw in draws:
                assert source.lookup(pa.table({"order_id": draw})).num_rows == 100
            return len(draws) * 100 / (time.perf_counter() - started)

        def peer(_: int) -> float:
            started = time.perf_counter()
            for draw in draws:
                marks = ",".join("?" * 100)
                assert len(db.execute(f"SELECT * FROM t WHERE a IN ({marks})", draw.tolist()).fetchall()) == 100
            return len(draws) * 100 / (time.perf_counter() - started)

        mine, other = in_turn(lambda _: timed(table), peer, runs)
        cases = [Case("lookup of 100 keys, in process", "keys/s", mine, "sqlite in memory, in process", other, "-")]
    server = Server(root / "lookup")
    try:
        with storage_engine.connect(server.url) as store:
            served = store.table("bench.orders")
            mine, other = in_turn(lambda _: timed(served), peer, runs)
    finally:
        server.stop()
    return [*cases, Case("lookup of 100 keys, over the wire", "keys/s", mine, "sqlite in memory, in process", other, "-")]


def memory(root: Path, n_rows: int) -> Case:
    """Resident memory of a server that holds a primary-key table of about 145-byte rows, after writing and looking up."""
    shutil.rmtree(root / "memory", ignore_errors=True)
    server = Server(root / "memory")
    try:
        idle = server.rss_mb()
        with storage_engine.connect(server.url) as store:
            store.execute(ORDER_DDL)
            table = store.table("bench.orders")
            order = np.random.default_rng(1).permutation(n_rows)
            for start in range(0, n_rows, BATCH):
                table.upsert(order_batch(order[start : start + BATCH], start))
            for start in range(0, 200_000, BATCH):
                table.upsert(order_batch(order[start : start + BATCH], start + 1))
            assert table.count() == n_rows
            peak = server.rss_mb("VmHWM")
    finally:
        server.stop()
    name = f"server memory, {n_rows:,} rows of 145 B, peak"
    return Case(name, "MB", [peak], "idle server", [idle], "600 MB or less", higher_is_better=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.store --quick")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one run: for a look, not for the record")
    arguments = parser.parse_args()
    scale, runs = (10, 1) if arguments.quick else (1, 3)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cases = []
        for step in (
            lambda: [upsert(root, 1_000_000 // scale, runs, "none")],
            lambda: [upsert(root, 1_000_000 // scale, runs, "commit")],
            lambda: [append(root, 32 // min(scale, 4), runs)],
            lambda: [pruned_scan(root, 48 // min(scale, 4), runs)],
            lambda: lookup(root, 500_000 // scale, runs),
            lambda: reads.cases(root, scale, runs),
            lambda: [memory(root, 1_000_000 // scale)],
            lambda: keys.cases(root, scale, runs),
            lambda: space.cases(root, scale, runs),
        ):
            cases += step()
            print(f"  {cases[-1].name}: {cases[-1].ratio:.3g}", file=sys.stderr)
    print(HEADER)
    for case in cases:
        print(case.row())
    versions = f"Python {platform.python_version()}, pyarrow {pa.__version__}, sqlite {sqlite3.sqlite_version}"
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
