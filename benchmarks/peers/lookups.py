"""Lookups through the wire: one key and 100 keys beside Redis, prefixes beside sqlite in process and Fluss."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from typing import Any

import numpy as np
import pyarrow as pa

import storage_engine
from benchmarks.measure import Case, in_turn
from benchmarks.peers.servers import Peers
from benchmarks.peers.writes import BATCH, _Fluss, served
from benchmarks.rows import ORDER_DDL, order_batch

_PREFIX = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("behaviour", pa.string()), ("ts", pa.int64())])


def lookup(peers: Peers, scale: int, runs: int) -> list[Case]:
    """Keys drawn at random from 1 M rows of 145 bytes; Redis holds values of 150 bytes. Medians of single calls; keys/s of many."""
    import redis

    n = 1_000_000 // scale
    rng = np.random.default_rng(3)
    client = redis.Redis(unix_socket_path=str(peers.redis().socket))
    client.flushall()
    for start in range(0, n, 1000):
        client.mset({key: b"x" * 150 for key in range(start, start + 1000)})
    with served(peers.directory, "none") as server, storage_engine.connect(server.url) as store:
        store.execute(ORDER_DDL)
        table = store.table("bench.orders")
        with table.writer() as writer:
            for start in range(0, n, BATCH):
                writer.upsert(order_batch(np.arange(start, start + BATCH), start))
        assert table.lookup_one(n - 1) == table.lookup([n - 1]).to_pylist()[0]

        def one(call: Any) -> float:
            times = []
            for key in rng.integers(0, n, 3000).tolist():
                started = time.perf_counter()
                found = call(key)
                times.append((time.perf_counter() - started) * 1e6)
                assert found is not None
            return statistics.median(times)

        def many(answers: Any) -> float:
            """Keys a second at the median time from one answer to the next: a neighbour's time slices do not count."""
            draws = [{"order_id": rng.choice(n, 100, replace=False)} for _ in range(600)]
            times = [time.perf_counter()]
            for rows in answers(draws):
                assert rows.num_rows == 100
                times.append(time.perf_counter())
            return 100 / float(np.median(np.diff(times)))

        def mget(_: int) -> float:
            draws = [rng.choice(n, 100, replace=False).tolist() for _ in range(600)]
            times = [time.perf_counter()]
            for draw in draws:
                assert None not in client.mget(draw)
                times.append(time.perf_counter())
            return 100 / float(np.median(np.diff(times)))

        peer = f"Redis {peers.redis().version}"
        mine, other = in_turn(lambda _: one(table.lookup_one), lambda _: one(client.get), runs)
        cases = [Case("lookup of 1 key, p50 (lookup_one)", "us", mine, f"{peer} GET", other, "1.3x or less", higher_is_better=False)]
        mine, other = in_turn(lambda _: many(lambda draws: map(table.lookup, draws)), mget, runs)
        cases.append(Case("lookup of 100 keys, one call after another", "keys/s", mine, f"{peer} MGET 100", other, "3x"))
        mine, other = in_turn(lambda _: many(table.lookups), mget, runs)
        cases.append(Case("lookup of 100 keys, pipelined (lookups)", "keys/s", mine, f"{peer} MGET 100", other, "3x"))
        return cases


def prefix(peers: Peers, scale: int, runs: int) -> list[Case]:
    """Prefixes of 10 rows, 256 a call, several calls on their way; sqlite reads an indexed range per prefix, in process."""
    users = 20_000 // min(scale, 10)
    rng = np.random.default_rng(4)
    user, item = np.repeat(np.arange(users), 10), np.tile(np.arange(10), users)
    rows = pa.table([pa.array(user), pa.array(item), pa.repeat("pv", len(user)), pa.array(1_700_000_000_000 + item)], schema=_PREFIX)
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE t (user_id, item_id, behaviour, ts, PRIMARY KEY (user_id, item_id)) WITHOUT ROWID")
    db.executemany("INSERT INTO t VALUES (?,?,?,?)", zip(*(column.to_pylist() for column in rows.columns), strict=True))
    cluster = _Fluss(peers)

    def sqlite(_: int) -> float:
        draws = rng.integers(0, users, 20_000).tolist()
        started = time.perf_counter()
        for draw in draws:
            assert len(db.execute("SELECT * FROM t WHERE user_id = ?", (draw,)).fetchall()) == 10
        return 20_000 / (time.perf_counter() - started)

    async def fill() -> Any:
        table = await cluster.table(_PREFIX, ["user_id", "item_id"], ["user_id"])
        writer = table.new_upsert().create_writer()
        for row in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            writer.upsert(row)
        await writer.flush()
        return [table.new_lookup().lookup_by(["user_id"]).create_lookuper() for _ in range(1024)]

    try:
        lookupers = cluster.run(fill())

        def fluss(_: int) -> float:
            async def look() -> float:
                draws = rng.integers(0, users, 1024).tolist()
                started = time.perf_counter()
                found = await asyncio.gather(*[one.lookup((key,)) for one, key in zip(lookupers, draws, strict=True)])
                assert all(len(part) == 10 for part in found)
                return time.perf_counter() - started

            return 4 * 1024 / sum(cluster.run(look()) for _ in range(4))

        with served(peers.directory, "none") as server, storage_engine.connect(server.url) as store:
            store.execute(
                "CREATE TABLE bench.prefix (user_id BIGINT NOT NULL, item_id BIGINT NOT NULL, behaviour STRING, ts BIGINT, "
                "PRIMARY KEY (user_id, item_id) NOT ENFORCED) WITH ('bucket.key' = 'user_id')"
            )
            table = store.table("bench.prefix")
            with table.writer() as writer:
                for start in range(0, len(user), BATCH):
                    writer.upsert(rows.slice(start, BATCH))

            def ours(_: int) -> float:
                draws = [{"user_id": rng.integers(0, users, 256)} for _ in range(80)]
                started = time.perf_counter()
                assert sum(part.num_rows for part in table.prefix_lookups(draws)) == 80 * 2560
                return 80 * 256 / (time.perf_counter() - started)

            mine, other = in_turn(ours, sqlite, runs)
            name = "prefix lookup of 10 rows, pipelined"
            cases = [Case(name, "prefixes/s", mine, f"sqlite {sqlite3.sqlite_version} in memory, in process", other, "1x")]
            mine, other = in_turn(ours, fluss, runs)
            cases.append(Case(name, "prefixes/s", mine, "Fluss 0.9.1 (pyfluss, 1024 in flight)", other, "0.5x of its Java client"))
            return cases
    finally:
        cluster.close()
