"""SIGKILL of the worker (and of the server under it) at any moment: afterwards every sink holds what one query over the input says."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

import storage_engine
from storage_engine import Store
from storage_engine.errors import RetriableError
from storage_engine.server import ServerProcess
from storage_engine.stream import SqlSession, Worker
from tests.stream.cases import event, event_table
from tests.stream.comparing import differing_jobs, query_rows, sink_rows
from tests.waiting import let_pass

pytestmark = pytest.mark.crash

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "5"))
SEED = int(os.environ.get("CRASH_SEED", "1"))
N_SHOPS = 5

JOBS = f"""
CREATE TABLE db.events (id BIGINT, shop BIGINT, kind STRING, qty INT, amount DECIMAL(12,2), uid BIGINT, ts TIMESTAMP(3))
  WITH ('bucket.num' = '2');
CREATE TABLE db.shops (shop BIGINT, city STRING, PRIMARY KEY (shop) NOT ENFORCED);
CREATE TABLE db.users (uid BIGINT, number BIGINT, PRIMARY KEY (uid) NOT ENFORCED) WITH ('auto-increment.fields' = 'number');
CREATE TABLE db.lines (id BIGINT, shop BIGINT, city STRING, amount DECIMAL(12,2), uid BIGINT);
CREATE TABLE db.once (id BIGINT, shop BIGINT, PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE db.wide (city STRING, n BIGINT, total DECIMAL(38,2), users BIGINT, mean DECIMAL(38,6), PRIMARY KEY (city) NOT ENFORCED);
CREATE TABLE db.adding (shop BIGINT, n BIGINT, total DECIMAL(38,2), PRIMARY KEY (shop) NOT ENFORCED)
  WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.total.agg' = 'sum');
CREATE TABLE db.uv (shop BIGINT, shard INT, users BYTES, PRIMARY KEY (shop, shard) NOT ENFORCED)
  WITH ('table.merge-engine' = 'aggregation', 'fields.users.agg' = 'rbm32');
SET 'pipeline.name' = 'lines';
INSERT INTO db.lines SELECT e.id, e.shop, COALESCE(s.city, 'none'), e.amount, e.uid FROM db.events e
  LEFT JOIN db.shops FOR SYSTEM_TIME AS OF PROCTIME() AS s ON e.shop = s.shop WHERE e.shop IS NOT NULL AND e.uid IS NOT NULL;
SET 'pipeline.name' = 'once'; INSERT INTO db.once SELECT id % 100, id % {N_SHOPS} FROM db.events;
SET 'pipeline.name' = 'wide_n'; 
INSERT INTO db.wide (city, n, total, users) SELECT city, COUNT(*), SUM(amount), COUNT(DISTINCT uid) FROM db.lines GROUP BY city;
SET 'pipeline.name' = 'wide_mean'; INSERT INTO db.wide (city, mean) SELECT city, AVG(amount) FROM db.lines GROUP BY city;
SET 'pipeline.name' = 'adding'; INSERT INTO db.adding SELECT shop, COUNT(*), SUM(amount) FROM db.lines GROUP BY shop;
SET 'pipeline.name' = 'uv';
INSERT INTO db.uv SELECT l.shop, CAST(u.number % 2 AS INT), BITMAP_TO_BYTES(BITMAP_BUILD_AGG(CAST(u.number / 2 AS INT))) FROM db.lines l
  LEFT JOIN db.users /*+ OPTIONS('lookup.insert-if-not-exists' = 'true') */ FOR SYSTEM_TIME AS OF PROCTIME() AS u ON l.uid = u.uid
  GROUP BY l.shop, CAST(u.number % 2 AS INT);
CREATE MATERIALIZED VIEW db.unique_users REFRESH ASYNC AS SELECT shop, SUM(RB_CARDINALITY(users)) AS n FROM db.uv GROUP BY shop;
"""

LINES = (
    "(SELECT e.id, e.shop, COALESCE(s.city, 'none') AS city, e.amount, e.uid FROM events e LEFT JOIN shops s USING (shop) "
    "WHERE e.shop IS NOT NULL AND e.uid IS NOT NULL)"
)
ORACLES = {
    "db.lines": f"SELECT * FROM {LINES}",
    "db.once": f"SELECT DISTINCT id % 100, CAST(id % {N_SHOPS} AS BIGINT) FROM events",
    "db.wide": f"SELECT city, count(*), sum(amount), count(DISTINCT uid), CAST(round(sum(amount) / count(amount), 6) AS DECIMAL(38,6)) "
    f"FROM {LINES} GROUP BY city",
    "db.adding": f"SELECT shop, count(*), sum(amount) FROM {LINES} GROUP BY shop",
    "db.unique_users": f"SELECT shop, count(DISTINCT uid) FROM {LINES} GROUP BY shop",
}  # fmt: skip


class WorkerProcess:
    """One `python -m storage_engine.stream`; stops by SIGKILL only."""

    def __init__(self, url: str, log: Path) -> None:
        command = [sys.executable, "-m", "storage_engine.stream", "--store", url, "--rows-max", "500"]
        self._log = log
        with log.open("ab") as sink:
            self._child = subprocess.Popen(command, stdout=sink, stderr=sink)

    def kill(self) -> None:
        assert self._child.poll() is None, f"the worker ended by itself: {self._log.read_text()[-2000:]}"
        self._child.kill()
        self._child.wait(30)


def prepare(store: Store) -> None:
    SqlSession(store).execute(JOBS)
    store.table("db.shops").upsert([{"shop": n, "city": f"C{n % 3}"} for n in range(1, 5)])


def check(store: Store, events: pa.Table) -> None:
    Worker(store).run_until_idle()
    shops = store.table("db.shops").read()
    for table, oracle in ORACLES.items():
        assert sink_rows(store, table) == query_rows(oracle, events=events, shops=shops), table
    assert differing_jobs(store) == []


def all_events(store: Store) -> pa.Table:
    return store.table("db.events").scan().read_all()


def await_progress(store: Store, seen: int, timeout_s: float = 60.0) -> int:
    """Wait until some job committed after `seen` micro-batches; how many there are then."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        n = sum(item.detail.get("n_batches", 0) for item in store.progress("job:").values())
        if n > seen:
            return n
        store.await_version(store.version(), 0.5)
    raise AssertionError("no job made progress")


def test_killing_the_worker_of_a_served_store_loses_and_doubles_nothing(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    is_over = threading.Event()
    with ServerProcess(tmp_path / "store") as server, storage_engine.connect(server.url) as store:
        prepare(store)

        def write() -> None:
            chance = random.Random(SEED + 1)
            with storage_engine.connect(server.url) as writer:
                number = 0
                while not is_over.wait(0.005):
                    writer.table("db.events").append(event_table([event(chance, number + i) for i in range(100)]))
                    number += 100

        thread = threading.Thread(target=write)
        thread.start()
        n_batches = 0
        try:
            for _ in range(ROUNDS):
                worker = WorkerProcess(server.url, tmp_path / "worker.log")
                n_batches = await_progress(store, n_batches)
                is_over.wait(rng.random() * 0.7)  # anywhere: reading, computing, committing, between jobs
                worker.kill()
        finally:
            is_over.set()
            thread.join(30)
        check(store, all_events(store))
    assert n_batches > ROUNDS


def test_killing_a_worker_that_owns_the_store_loses_and_doubles_nothing(tmp_path: Path) -> None:
    rng = random.Random(SEED + 7)
    url = (tmp_path / "store").as_uri()
    with storage_engine.connect(url) as store:
        prepare(store)
        for base in range(0, 20_000, 400):
            store.table("db.events").append(event_table([event(rng, base + i) for i in range(400)]))
    for _ in range(ROUNDS):
        worker = WorkerProcess(url, tmp_path / "worker.log")
        let_pass(0.8 + rng.random())  # starting takes most of it; then anywhere
        worker.kill()
    with storage_engine.connect(url) as store:
        check(store, all_events(store))


def test_killing_the_server_under_a_worker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    rng = random.Random(SEED + 11)
    server = ServerProcess(tmp_path / "store").start()
    port = int(server.url.rsplit(":", 1)[1])
    worker = WorkerProcess(server.url, tmp_path / "worker.log")
    try:
        with storage_engine.connect(server.url) as store:
            prepare(store)
        for round_number in range(max(ROUNDS // 2, 2)):
            with storage_engine.connect(server.url) as store:
                seen = sum(item.detail.get("n_batches", 0) for item in store.progress("job:").values())
                for base in range(0, 2_000, 200):
                    store.table("db.events").append(event_table([event(rng, round_number * 2_000 + base + i) for i in range(200)]))
                await_progress(store, seen)
            let_pass(rng.random() * 0.3)  # the moment of the kill is the input of this test
            server.kill()
            server = ServerProcess(tmp_path / "store", port=port).start()
        with storage_engine.connect(server.url) as store:
            await_idle(store)
        worker.kill()
        with storage_engine.connect(server.url) as store:
            check(store, all_events(store))
    finally:
        server.kill()


def await_idle(store: Store, timeout_s: float = 90.0) -> None:
    """Wait until the worker has read everything: it came back to the new server by itself."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            lags = SqlSession(store).execute("SHOW JOBS")[-1].rows["lag_rows"].to_pylist()
            if not any(lags):
                return
            store.await_version(store.version(), 0.5)
        except RetriableError:
            continue
    raise AssertionError(f"jobs still lag: {lags}")
