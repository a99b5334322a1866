"""Writes through the wire: upserts beside Fluss and sqlite, appends beside Fluss and Kafka. Neither peer syncs; ours says what it does."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import storage_engine
from benchmarks.measure import Case, in_turn
from benchmarks.peers.rows import EVENT, EVENT_DDL, KEYED, KEYED_DDL, events, keyed
from benchmarks.peers.servers import Peers
from benchmarks.rows import ORDER_DDL, order_batch
from storage_engine.server import ServerProcess

BATCH = 10_000
_numbers = itertools.count()


def served(directory: Path, sync: str) -> ServerProcess:
    return ServerProcess(directory / f"store-{sync}-{next(_numbers)}", sync=sync)


class _Fluss:
    """pyfluss over one cluster, called from plain code; every table has a name of its own."""

    def __init__(self, peers: Peers) -> None:
        import fluss

        self._fluss = fluss
        self._loop = asyncio.new_event_loop()
        self._url = peers.fluss().url.removeprefix("fluss://")
        self.run(self._connect())

    def run(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, 300))

    async def _connect(self) -> None:
        self._connection = await self._fluss.FlussConnection.create(self._fluss.Config({"bootstrap.servers": self._url}))
        await self._connection.get_admin().create_database("bench", ignore_if_exists=True)

    async def table(self, schema: pa.Schema, key: list[str] | None = None, bucket_key: list[str] | None = None) -> Any:
        path = self._fluss.TablePath("bench", f"t{next(_numbers)}")
        described = self._fluss.Schema(schema, primary_keys=key) if key else self._fluss.Schema(schema)
        options: dict[str, Any] = {"bucket_keys": bucket_key} if bucket_key else {}
        await self._connection.get_admin().create_table(path, self._fluss.TableDescriptor(described, bucket_count=1, **options))
        return await self._connection.get_table(path)

    async def _disconnect(self) -> None:
        await self._connection.close()

    def close(self) -> None:
        self.run(self._disconnect())
        self._loop.close()


def upsert(peers: Peers, scale: int, runs: int) -> list[Case]:
    """1 M new keys in random order, batches of 10,000, full changelog: through our wire, through pyfluss, and into sqlite in process."""
    n = 1_000_000 // scale
    order = np.random.default_rng(1).permutation(n)
    batches = [keyed(order[start : start + BATCH], start) for start in range(0, n, BATCH)]
    tuples = [list(zip(*(column.to_pylist() for column in batch.columns), strict=True)) for batch in batches]
    cluster = _Fluss(peers)

    def fluss(_: int) -> float:
        async def write() -> float:
            table = await cluster.table(KEYED, ["k"])
            writer = table.new_upsert().create_writer()
            await writer.upsert((-1, 0, "x", 0)).wait()
            started = time.perf_counter()
            for rows in tuples:
                for row in rows:
                    writer.upsert(row)
            await writer.flush()
            return time.perf_counter() - started

        return n / cluster.run(write())

    try:
        with served(peers.directory, "none") as server, storage_engine.connect(server.url) as store:
            ours = _upserts(store, KEYED_DDL, batches)
            name = f"upsert through the wire, {n:,} keys of 4 columns, page cache"
            mine, other = in_turn(ours, fluss, runs)
            cases = [Case(name, "rows/s", mine, "Fluss 0.9.1 (pyfluss)", other, "3x")]
            mine, other = in_turn(ours, lambda _: _sqlite_upserts(peers.directory, tuples, 4), runs)
            cases.append(Case(name, "rows/s", mine, f"sqlite {sqlite3.sqlite_version} in process, WAL, sync off", other, "15x"))
            wide = [order_batch(order[start : start + BATCH], start) for start in range(0, n, BATCH)]
            wide_tuples = [list(zip(*(column.to_pylist() for column in batch.columns), strict=True)) for batch in wide]
            mine, other = in_turn(_upserts(store, ORDER_DDL, wide), lambda _: _sqlite_upserts(peers.directory, wide_tuples, 8), runs)
            peer = f"sqlite {sqlite3.sqlite_version} in process, WAL, sync off"
            cases.append(Case(f"upsert through the wire, {n:,} keys, rows of 145 B, page cache", "rows/s", mine, peer, other, "15x"))
            return cases
    finally:
        cluster.close()


def upsert_fsync(peers: Peers, scale: int, runs: int) -> list[Case]:
    """The same upserts, acknowledged after fsync, beside ourselves without."""
    n = 1_000_000 // scale
    order = np.random.default_rng(1).permutation(n)
    batches = [keyed(order[start : start + BATCH], start) for start in range(0, n, BATCH)]
    with served(peers.directory, "commit") as durable, served(peers.directory, "none") as plain:
        with storage_engine.connect(durable.url) as one, storage_engine.connect(plain.url) as other_store:
            mine, other = in_turn(_upserts(one, KEYED_DDL, batches), _upserts(other_store, KEYED_DDL, batches), runs)
    return [Case("upsert through the wire, acknowledged after fsync", "rows/s", mine, "ours without fsync", other, "0.7x")]


def _upserts(store: storage_engine.Store, ddl: str, batches: list[pa.RecordBatch]) -> Callable[[int], float]:
    n = sum(batch.num_rows for batch in batches)

    def ours(_: int) -> float:
        name = f"bench.u{next(_numbers)}"
        store.execute(ddl.format(name=name).replace("bench.orders", name))
        table = store.table(name)
        started = time.perf_counter()
        with table.writer() as writer:
            for batch in batches:
                writer.upsert(batch)
        seconds = time.perf_counter() - started
        assert table.count() == n
        store.execute(f"DROP TABLE {name}")
        return n / seconds

    return ours


def _sqlite_upserts(directory: Path, batches: list[list[tuple[Any, ...]]], n_columns: int) -> float:
    path = directory / f"peer-{next(_numbers)}.sqlite"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")
    names = [f"c{i}" for i in range(n_columns)]
    db.execute(f"CREATE TABLE t (c0 INTEGER PRIMARY KEY, {', '.join(names[1:])})")
    sets = ", ".join(f"{name}=excluded.{name}" for name in names[1:])
    sql = f"INSERT INTO t VALUES ({','.join('?' * n_columns)}) ON CONFLICT(c0) DO UPDATE SET {sets}"
    started = time.perf_counter()
    for rows in batches:
        db.execute("BEGIN")
        db.executemany(sql, rows)
        db.execute("COMMIT")
    seconds = time.perf_counter() - started
    n = sum(map(len, batches))
    assert db.execute("SELECT count(*) FROM t").fetchone()[0] == n
    db.close()
    return n / seconds


def append(peers: Peers, scale: int, runs: int) -> list[Case]:
    """Arrow batches of 10,000 and 1,000 events, zstd, acknowledged from page cache."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    kafka = peers.kafka()
    cluster = _Fluss(peers)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})

    def to_kafka(batches: list[pa.RecordBatch], times: int) -> float:
        topic = f"t{next(_numbers)}"
        for done in admin.create_topics([NewTopic(topic, 1, 1, config={"max.message.bytes": "20000000"})]).values():
            done.result()
        settings = {"acks": "all", "compression.type": "zstd", "message.max.bytes": 20_000_000, "queue.buffering.max.kbytes": 1_000_000}
        producer = Producer({"bootstrap.servers": kafka.bootstrap, **settings})
        producer.produce(topic, _ipc(batches[0].slice(0, 1)))
        producer.flush()
        started = time.perf_counter()
        for i in range(times):
            producer.produce(topic, _ipc(batches[i % len(batches)]))
            producer.poll(0)
        assert producer.flush() == 0
        return times * batches[0].num_rows / (time.perf_counter() - started)

    def to_fluss(batches: list[pa.RecordBatch], times: int) -> float:
        async def write() -> float:
            table = await cluster.table(EVENT)
            writer = table.new_append().create_writer()
            writer.write_arrow_batch(batches[0].slice(0, 1))
            await writer.flush()
            started = time.perf_counter()
            for i in range(times):
                writer.write_arrow_batch(batches[i % len(batches)])
            await writer.flush()
            return time.perf_counter() - started

        return times * batches[0].num_rows / cluster.run(write())

    def to_us(store: storage_engine.Store, batches: list[pa.RecordBatch], times: int) -> float:
        name = f"bench.a{next(_numbers)}"
        store.execute(EVENT_DDL.format(name=name, options="'table.log.arrow.compression.type' = 'ZSTD'"))
        table = store.table(name)
        with table.writer() as writer:
            writer.append(batches[0].slice(0, 1))
        started = time.perf_counter()
        with table.writer() as writer:
            for i in range(times):
                writer.append(batches[i % len(batches)])
        seconds = time.perf_counter() - started
        assert table.count() == times * batches[0].num_rows + 1
        return times * batches[0].num_rows / seconds

    cases = []
    try:
        with served(peers.directory, "none") as server, storage_engine.connect(server.url) as store:
            for size, n, targets in ((10_000, 4_000_000, ("1x", "1x")), (1_000, 1_000_000, ("0.5x", ""))):
                batches = [events(size, seed) for seed in range(8)]
                times = n // scale // size
                name = f"append through the wire, Arrow batches of {size:,}, zstd, page cache"

                def ours(_: int, b: list[pa.RecordBatch] = batches, t: int = times) -> float:
                    return to_us(store, b, t)

                mine, other = in_turn(ours, lambda _, b=batches, t=times: to_kafka(b, t), runs)
                cases.append(Case(name, "rows/s", mine, f"Kafka {kafka.version}, Arrow messages", other, targets[0]))
                if targets[1]:
                    mine, other = in_turn(ours, lambda _, b=batches, t=times: to_fluss(b, t), runs)
                    cases.append(Case(name, "rows/s", mine, "Fluss 0.9.1 (pyfluss)", other, targets[1]))
        return cases
    finally:
        cluster.close()


def _ipc(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
