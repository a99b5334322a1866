"""The crash campaign of streams: two workers, the store's server and the tiering worker are killed with SIGKILL at random, again and again,
while events (some of them poison), updates and deletes come in. `make stream-kills` (MINUTES=10 SEED=1).

Every CHECK_S the writers rest, the platform catches up, and every sink is compared three times: with the recomputation from the recorded
offsets (verify), with plain DuckDB over what the writers were told is stored, and with its copies: the changelog replayed to rows, and the
rows of its Delta table. Writers ride over the kills by write ids, so what was acknowledged is known to the row.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

import storage_engine
from query_engine.verify import jobs_of, verify
from storage_engine import Store, WriteId, WriteOp
from storage_engine.errors import RetriableError
from storage_engine.lake import lake_read
from storage_engine.server import ServerProcess
from storage_engine.stream import load_jobs, open_connection
from tests.stream.comparing import query_rows, rows_of, sink_rows

CHECK_S = 20.0
CATCH_UP_S = 120.0
TIERED = "'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '1s'"

JOBS = f"""
CREATE TABLE k.events (id BIGINT, shop BIGINT, uid BIGINT, text STRING) WITH ('bucket.num' = '2', 'bucket.key' = 'id');
CREATE TABLE k.orders (id BIGINT, shop BIGINT, qty BIGINT, PRIMARY KEY (id) NOT ENFORCED) WITH ('bucket.num' = '2');
CREATE TABLE k.lines (id BIGINT, n BIGINT) WITH ({TIERED});
CREATE TABLE k.by_shop (shop BIGINT, n BIGINT, users BIGINT, PRIMARY KEY (shop) NOT ENFORCED) WITH ({TIERED});
CREATE TABLE k.adding (shop BIGINT, n BIGINT, PRIMARY KEY (shop) NOT ENFORCED)
  WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', {TIERED});
CREATE TABLE k.sold (shop BIGINT, n BIGINT, qty BIGINT, high BIGINT, mean BIGINT, PRIMARY KEY (shop) NOT ENFORCED) WITH ({TIERED});
CREATE TABLE k.pairs (id BIGINT, uid BIGINT, qty BIGINT, PRIMARY KEY (id) NOT ENFORCED) WITH ({TIERED});
CREATE TABLE k.best (shop BIGINT, rn BIGINT, id BIGINT, qty BIGINT, PRIMARY KEY (shop, rn) NOT ENFORCED);
SET 'pipeline.poison-row' = 'quarantine'; SET 'pipeline.name' = 'lines'; INSERT INTO k.lines SELECT id, CAST(text AS BIGINT) FROM k.events;
SET 'pipeline.poison-row' = 'fail';
SET 'pipeline.name' = 'by_shop'; INSERT INTO k.by_shop SELECT shop, COUNT(*), COUNT(DISTINCT uid) FROM k.events GROUP BY shop;
SET 'pipeline.name' = 'adding'; INSERT INTO k.adding SELECT shop, COUNT(*) FROM k.events GROUP BY shop;
SET 'pipeline.name' = 'sold';
INSERT INTO k.sold SELECT shop, COUNT(*), SUM(qty), MAX(qty), AVG(qty) FROM k.orders GROUP BY shop;
SET 'pipeline.name' = 'pairs';
INSERT INTO k.pairs SELECT o.id, e.n, o.qty FROM k.orders o
  JOIN (SELECT shop, COUNT(*) AS n FROM k.events GROUP BY shop) e ON o.shop = e.shop;
SET 'pipeline.name' = 'best';
INSERT INTO k.best SELECT shop, rn, id, qty FROM
  (SELECT shop, id, qty, ROW_NUMBER() OVER (PARTITION BY shop ORDER BY qty DESC, id) AS rn FROM k.orders) WHERE rn <= 3;
"""
ORACLES = {
    "k.lines": "SELECT id, text::BIGINT FROM events WHERE text <> 'poison'",
    "k.by_shop": "SELECT shop, count(*), count(DISTINCT uid) FROM events GROUP BY shop",
    "k.adding": "SELECT shop, count(*) FROM events GROUP BY shop",
    "k.sold": "SELECT shop, count(*), sum(qty)::BIGINT, max(qty), CAST(trunc(sum(qty) / count(*)) AS BIGINT) FROM orders GROUP BY shop",
    "k.pairs": "SELECT o.id, e.n, o.qty FROM orders o JOIN (SELECT shop, count(*) AS n FROM events GROUP BY shop) e USING (shop)",
    "k.best": "SELECT shop, row_number() OVER (PARTITION BY shop ORDER BY qty DESC, id) AS rn, id, qty FROM orders QUALIFY rn <= 3",
}
"""Sink -> what plain DuckDB says of all that was acknowledged."""


@dataclass
class Figures:
    """What a campaign did."""

    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    rows_in: int = 0
    rows_compared: int = 0
    quarantined: int = 0
    micro_batches: int = 0
    catch_ups_s: list[float] = field(default_factory=list)

    def table(self) -> str:
        waits = self.catch_ups_s or [0.0]
        lines = {
            "seconds": f"{self.seconds:,.0f}",
            "kill -9": ", ".join(f"{name} {n}" for name, n in sorted(self.kills.items())),
            "rows acknowledged by the store": f"{self.rows_in:,}",
            "micro-batches committed": f"{self.micro_batches:,}",
            "poison rows in quarantine": f"{self.quarantined:,}",
            "comparisons of all sinks": f"{self.checks}",
            "rows compared (verify, DuckDB, changelog, Delta)": f"{self.rows_compared:,}",
            "rows that differ": "0",
            "all caught up after the writers rest, median / max": f"{statistics.median(waits):.1f} s / {max(waits):.1f} s",
        }
        return "\n".join(["| stream-kills | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines.items())])


class Campaign:
    """One run. `_gate` is held while sinks are compared: the writer passes it before each commit."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.figures = Figures()
        self._rng = random.Random(seed)
        self._seed = seed
        self._gate = threading.Lock()
        self._is_over = threading.Event()
        self._failure: BaseException | None = None
        self.events: list[dict[str, Any]] = []
        self.orders: dict[int, dict[str, Any]] = {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._server = ServerProcess(directory / "store", port=self._port).start()
        self.url = self._server.url
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, seconds: float) -> Figures:
        """Run and compare. Errors: AssertionError naming the sink that differs."""
        began = time.monotonic()
        with storage_engine.connect(self.url) as store:
            store.execute(JOBS)
        writer = threading.Thread(target=self._write, daemon=True)
        try:
            for name in ("worker 1", "worker 2", "tiering"):
                self._start(name)
            writer.start()
            next_check = began + CHECK_S
            while time.monotonic() - began < seconds:
                self._is_over.wait(self._rng.uniform(0.3, 2.5))
                self._kill_one()
                if time.monotonic() >= next_check:
                    self._check()
                    next_check = time.monotonic() + CHECK_S
            self._check()
            self._is_over.set()
            writer.join(60)
            if self._failure is not None:
                raise self._failure
        finally:
            self._is_over.set()
            for child in self._children.values():
                child.kill()
                child.wait(30)
            self._server.kill()
        self.figures.seconds = time.monotonic() - began
        return self.figures

    # attackers

    def _start(self, name: str) -> None:
        log = (self.directory / f"{name.replace(' ', '')}.log").open("ab")
        lake = [] if name != "tiering" else ["--lake", str(self.directory / "lake")]
        room = "lake" if name == "tiering" else "stream"
        rows = [] if name == "tiering" else ["--rows-max", "2000"]
        with log:
            command = [sys.executable, "-m", f"storage_engine.{room}", "--store", self.url, *lake, *rows]
            self._children[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def _kill_one(self) -> None:
        name = self._rng.choice(["worker 1", "worker 2", "worker 1", "worker 2", "server", "tiering"])
        if name == "server":
            self._server.kill()
            self._server = ServerProcess(self.directory / "store", port=self._port).start()
        else:
            self._children[name].kill()
            self._children[name].wait(30)
            self._start(name)
        self.figures.kills[name] += 1

    # writers

    def _write(self) -> None:
        rng = random.Random(self._seed + 1)
        sequence = 0
        try:
            with storage_engine.connect(self.url) as store:
                while not self._is_over.wait(rng.uniform(0.0, 0.03)):
                    with self._gate:
                        sequence += 1
                        self._commit(store, rng, sequence)
        except BaseException as error:  # noqa: BLE001 - handed to the campaign, which raises it
            self._failure = error

    def _commit(self, store: Store, rng: random.Random, sequence: int) -> None:
        base = len(self.events)
        events = [
            {"id": base + i, "shop": rng.randrange(20), "uid": rng.randrange(500), "text": "poison" if rng.random() < 0.002 else str(i)}
            for i in range(rng.randrange(1, 120))
        ]
        ids = rng.sample(range(300), rng.randrange(1, 30))
        orders = {number: {"id": number, "shop": rng.randrange(20), "qty": rng.randrange(1000)} for number in ids}
        gone = [number for number in rng.sample(range(300), 5) if number in self.orders and number not in orders]
        ops = [
            WriteOp("k.events", "append", pa.Table.from_pylist(events)),
            WriteOp("k.orders", "upsert", pa.Table.from_pylist(list(orders.values()))),
        ]
        ops += [WriteOp("k.orders", "delete", pa.table({"id": pa.array(gone, pa.int64())}))] if gone else []
        self._acknowledged(store, ops, WriteId("campaign", sequence))
        self.events += events
        self.orders.update(orders)
        for number in gone:
            del self.orders[number]
        self.figures.rows_in += len(events) + len(orders) + len(gone)

    def _acknowledged(self, store: Store, ops: list[WriteOp], write: WriteId) -> None:
        deadline = time.monotonic() + CATCH_UP_S
        while True:
            try:
                store.commit(ops, write_id=write)
                return
            except RetriableError:
                if time.monotonic() > deadline:
                    raise
                self._is_over.wait(0.05)

    # comparisons

    def _check(self) -> None:
        with self._gate, storage_engine.connect(self.url) as store:
            if self._failure is not None:
                raise self._failure
            began = time.monotonic()
            self._await_all(store)
            self.figures.catch_ups_s.append(time.monotonic() - began)
            self._compare(store)
            self.figures.checks += 1

    def _await_all(self, store: Store) -> None:
        """Wait until no job and no tiering has rows left."""
        deadline = time.monotonic() + CATCH_UP_S
        while behind := self._behind(store):
            failed = [f"{job.name}: {job.last_error}" for job in load_jobs(store).values() if job.state != "RUNNING"]
            assert not failed, failed
            assert time.monotonic() < deadline, f"still behind after {CATCH_UP_S} s: {behind}"
            store.await_version(store.version(), 0.2)

    def _behind(self, store: Store) -> list[str]:
        ends: dict[str, Any] = {}
        progress = store.progress("")

        def reached(owner: str, table: str) -> bool:
            if table not in ends:
                ends[table] = store.backend.offsets(table, "latest")
            made = progress[owner].offsets.get(table, {}) if owner in progress else {}
            return all(made.get(bucket, 0) >= end for bucket, end in ends[table].items())

        behind = [job.name for job in load_jobs(store).values() for table in job.known if not reached(job.owner, table)]
        return behind + [f"tier:{table}" for table in ORACLES if self._is_tiered(store, table) and not reached(f"tier:{table}", table)]

    @staticmethod
    def _is_tiered(store: Store, table: str) -> bool:
        return store.describe(table).is_tiered

    def _compare(self, store: Store) -> None:
        events = pa.Table.from_pylist(self.events)
        orders = pa.Table.from_pylist(list(self.orders.values()))
        assert store.table("k.events").scan(["id"]).read_all().num_rows == len(self.events)
        con = open_connection()
        for table, oracle in ORACLES.items():
            for report in verify(store, None, table):
                assert report.holds, f"{table}: verify finds {report.rows_differing} rows that differ: {report.sample}"
                self.figures.rows_compared += report.rows_compared
            got = sink_rows(store, table)
            assert got == query_rows(oracle, events=events, orders=orders), f"{table} differs from DuckDB over the acknowledged rows"
            self.figures.rows_compared += len(got)
            columns = list(store.describe(table).column_names)
            if store.describe(table).has_primary_key:
                assert self._replayed(store, table, columns) == got, f"the changelog of {table} does not lead to its rows"
                self.figures.rows_compared += len(got)
            if self._is_tiered(store, table):
                lake = rows_of(lake_read(con, store, self.directory / "lake", table, columns))
                assert lake == got, f"the Delta table of {table} differs from the store"
                self.figures.rows_compared += len(got)
        con.close()
        self._check_quarantine(store)
        self.figures.micro_batches = sum(item.detail.get("n_batches", 0) for item in store.progress("job:").values())
        assert {job.sink for job in load_jobs(store).values()} == set(ORACLES)
        assert all(jobs_of(store, table) for table in ORACLES)

    def _check_quarantine(self, store: Store) -> None:
        """Each poison row is there exactly once."""
        rows = store.table("k.job_quarantine").scan(["source_bucket", "source_offset", "row_text"]).read_all().to_pylist()
        places = {(row["source_bucket"], row["source_offset"]) for row in rows}
        assert len(rows) == len(places) == sum(row["text"] == "poison" for row in self.events)
        self.figures.quarantined = len(rows)

    @staticmethod
    def _replayed(store: Store, table: str, columns: list[str]) -> list[tuple[Any, ...]]:
        """The rows that a reader of the changelog ends with: every -U and -D takes back a row that was there."""
        changes = store.table(table).scan(columns).read_all()
        rows: Counter[tuple[Any, ...]] = Counter()
        for change in changes.to_pylist():
            kind = change.pop("_change_type")
            row = tuple(change.values())
            rows[row] += 1 if kind in ("+I", "+U") else -1
            assert rows[row] >= 0, f"{table}: {kind} of a row that is not there: {row}"
        return sorted(rows.elements(), key=repr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stream.kills")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stream-kills-") as scratch:
        figures = Campaign(Path(scratch), options.seed).run(options.minutes * 60)
    sys.stdout.write(figures.table() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
