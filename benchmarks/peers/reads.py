"""Reads: few of many columns over the wire, distinct users from bitmaps beside DuckDB, and the server's memory."""

from __future__ import annotations

import itertools
import time

import duckdb
import numpy as np
import pyarrow as pa
from pyroaring import BitMap

import storage_engine
from benchmarks.measure import Case, in_turn
from benchmarks.peers.rows import twenty, twenty_ddl
from benchmarks.peers.servers import Peers
from benchmarks.peers.writes import BATCH, served
from benchmarks.rows import ORDER_DDL, order_batch, wide_batch, wide_ddl
from benchmarks.store import Server


def columns(peers: Peers, scale: int, runs: int) -> list[Case]:
    """2 of 20 columns (44 of 300 bytes) against all; and the server's CPU time for 3 of 100 columns against all."""
    n = 2_000_000 // scale
    with served(peers.directory, "none") as server, storage_engine.connect(server.url) as store:
        store.execute(twenty_ddl("bench.twenty"))
        table = store.table("bench.twenty")
        batches = [twenty(10_000, seed) for seed in range(4)]
        with table.writer() as writer:
            for i in range(n // 10_000):
                writer.append(batches[i % 4])

        def scanned(names: list[str] | None) -> float:
            started = time.perf_counter()
            assert table.scan(names).read_all().num_rows == n
            return n / (time.perf_counter() - started)

        mine, other = in_turn(lambda _: scanned(["i0", "s0"]), lambda _: scanned(None), runs)
    cases = [Case("read 2 of 20 columns over the wire (15 % of the bytes)", "rows/s", mine, "all 20", other, "6.7x")]
    server = Server(peers.directory / "hundred")
    try:
        with storage_engine.connect(server.url) as store:
            store.execute(wide_ddl(100))
            table = store.table("bench.wide")
            distinct = [wide_batch(16_384, 100, i) for i in range(4)]
            n_batches = max(48 // scale, 12)
            with table.writer() as writer:
                for i in range(n_batches):
                    writer.append(distinct[i % 4])

            def cost(names: list[str] | None, times: int) -> float:
                before = server.cpu_s()
                for _ in range(times):
                    assert sum(batch.num_rows for batch in table.scan(names)) == n_batches * 16_384
                return (server.cpu_s() - before) / times

            mine, other = in_turn(lambda _: cost(["c1", "c5", "c50"], 40), lambda _: cost(None, 4), runs)
    finally:
        server.stop()
    name = "server CPU to read 3 of 100 columns"
    return [*cases, Case(name, "s per scan", mine, "all 100 columns", other, "1/50 = 0.02 or less", higher_is_better=False)]


def uniques(peers: Peers, scale: int, runs: int) -> list[Case]:
    """Distinct users of a day: 10 M events, kept as one bitmap per hour over dense ids, beside COUNT(DISTINCT) over the events."""
    n, n_users, n_groups = 10_000_000 // scale, 1_000_000 // scale, 24
    rng = np.random.default_rng(9)
    user, group = rng.integers(0, n_users, n).astype(np.uint32), rng.integers(0, n_groups, n)
    db = duckdb.connect()
    db.register("events", pa.table({"user_id": user, "g": group}))
    db.execute("CREATE TABLE t AS SELECT * FROM events")
    expected = len(np.unique(user))
    order = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[order], np.arange(n_groups + 1))
    maps = [BitMap(np.sort(user[order[a:b]])) for a, b in itertools.pairwise(bounds)]
    rows = pa.table({"g": np.arange(n_groups), "users": pa.array([one.serialize() for one in maps], pa.binary())})
    with served(peers.directory, "none") as server, storage_engine.connect(server.url) as store:
        store.execute(
            "CREATE TABLE bench.uv (g BIGINT NOT NULL, users BYTES, PRIMARY KEY (g) NOT ENFORCED) "
            "WITH ('table.merge-engine' = 'aggregation', 'fields.users.agg' = 'rbm32')"
        )
        table = store.table("bench.uv")
        table.upsert(rows)
        from query_engine.engine import QueryEngine

        engine = QueryEngine(store, peers.directory / "lake")
        try:
            question = "SELECT {count} FROM bench.uv"

            def ours(_: int) -> float:
                started = time.perf_counter()
                found = engine.query(question.format(count="BITMAP_UNION_COUNT(users)")).to_pylist()
                seconds = time.perf_counter() - started
                assert list(found[0].values()) == [expected]
                return seconds * 1000

            def peer(_: int) -> float:
                started = time.perf_counter()
                found = db.execute("SELECT COUNT(DISTINCT user_id) FROM t").fetchone()
                seconds = time.perf_counter() - started
                assert found == (expected,)
                return seconds * 1000

            mine, other = in_turn(ours, peer, runs)
        finally:
            engine.close()
    name = f"distinct users of {n:,} events from {n_groups} bitmaps, through the wire"
    return [Case(name, "ms", mine, f"DuckDB {duckdb.__version__} COUNT(DISTINCT)", other, "1/20 = 0.05 or less", higher_is_better=False)]


def memory(peers: Peers, scale: int, _runs: int) -> list[Case]:
    """Resident memory of the server: idle, and its peak after 1 M upserts and as many lookups of 145-byte rows."""
    n = 1_000_000 // scale
    server = Server(peers.directory / "memory")
    try:
        idle = server.rss_mb()
        with storage_engine.connect(server.url) as store:
            store.execute(ORDER_DDL)
            table = store.table("bench.orders")
            order = np.random.default_rng(1).permutation(n)
            with table.writer() as writer:
                for start in range(0, n, BATCH):
                    writer.upsert(order_batch(order[start : start + BATCH], start))
            for rows in table.lookups({"order_id": order[start : start + 100]} for start in range(0, n, 100)):
                assert rows.num_rows == 100
            peak = server.rss_mb("VmHWM")
    finally:
        server.stop()
    return [
        Case("server memory, idle", "MB", [idle], "bound", [150.0], "150 MB or less", higher_is_better=False),
        Case(f"server memory, {n:,} rows of 145 B, peak", "MB", [peak], "bound", [600.0], "600 MB or less", higher_is_better=False),
    ]
