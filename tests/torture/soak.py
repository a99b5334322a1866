"""The soak: a real server under mixed load, killed with SIGKILL again and again, held to a model to the row. `make soak` (MINUTES=30).

Writers (log, primary key, aggregation, partitioned), each with a connection of its own, ride over the kills by their write ids. Beside
them: readers and scans, a consumer, ADD COLUMN, partitions that are dropped, backups. What a commit holds is a function of (writer,
number), so at each restart, while the writers stand still, and at the end every table is compared with what the acknowledged commits leave.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

import storage_engine
from storage_engine import Store, WriteId, WriteOp
from storage_engine.engine.fsck import check_store
from storage_engine.errors import StoreUnavailable
from storage_engine.server import ServerProcess

WRITERS = ("log", "pk", "total", "days")
N_KEYS = 400
_RETRY_S = 120.0
_DDL = """
CREATE TABLE IF NOT EXISTS soak.log (writer INT, seq BIGINT, i INT) WITH ('bucket.num' = '3', 'bucket.key' = 'seq');
CREATE TABLE IF NOT EXISTS soak.pk (writer INT NOT NULL, k INT NOT NULL, seq BIGINT, note STRING, PRIMARY KEY (writer, k) NOT ENFORCED)
  WITH ('bucket.num' = '2', 'bucket.key' = 'writer');
CREATE TABLE IF NOT EXISTS soak.total (k INT NOT NULL, n BIGINT, high BIGINT, PRIMARY KEY (k) NOT ENFORCED)
  WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.high.agg' = 'max');
CREATE TABLE IF NOT EXISTS soak.days (id BIGINT NOT NULL, day STRING NOT NULL, seq BIGINT, PRIMARY KEY (id, day) NOT ENFORCED)
  PARTITIONED BY (day) WITH ('bucket.num' = '2');
"""


@dataclass
class Figures:
    """What a soak did."""

    seconds: float = 0.0
    commits: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    checks: int = 0
    rows_compared: int = 0
    reads: int = 0
    polled: int = 0
    columns_added: int = 0
    partitions_dropped: int = 0
    backups: int = 0

    def table(self) -> str:
        recovered = self.recoveries_s or [0.0]
        lines = {
            "seconds": f"{self.seconds:,.0f}", "commits acknowledged": f"{self.commits.total():,}",
            "of them by writer": ", ".join(f"{name} {n:,}" for name, n in sorted(self.commits.items())), "rows written": f"{self.rows:,}",
            "kill -9": f"{len(self.recoveries_s)}", "restart to first answer, median / max":
            f"{statistics.median(recovered):.2f} s / {max(recovered):.2f} s",
            "comparisons of all tables": f"{self.checks}", "rows compared": f"{self.rows_compared:,}", "reads meanwhile": f"{self.reads:,}",
            "rows polled by the consumer": f"{self.polled:,}", "columns added": f"{self.columns_added}",
            "partitions dropped": f"{self.partitions_dropped}", "backups": f"{self.backups}",
        }  # fmt: skip
        return "\n".join(["| soak | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines.items())])


def commit_of(seed: int, name: str, seq: int) -> list[tuple[str, dict[str, list[Any]]]]:
    """Commit number `seq` of a writer: (kind, columns) of each operation on soak.<name>."""
    chance = random.Random(f"{seed}/{name}/{seq}")
    n = chance.choice([1, 10, 100, 500])
    if name == "log":
        return [("append", {"writer": [0] * n, "seq": [seq] * n, "i": list(range(n))})]
    if name == "pk":
        keys = chance.sample(range(N_KEYS), min(n, N_KEYS))
        gone = chance.sample(range(N_KEYS), min(n // 5 + 1, N_KEYS))
        rows = {"writer": [k % 7 for k in keys], "k": keys, "seq": [seq] * len(keys), "note": [f"{seq}-{k}" for k in keys]}
        return [("upsert", rows), ("delete", {"writer": [k % 7 for k in gone], "k": gone})]
    if name == "total":
        keys = [chance.randrange(50) for _ in range(n)]
        return [("upsert", {"k": keys, "n": [chance.randrange(10) for _ in keys], "high": [seq] * n})]
    day = f"d{seq // 40:05d}"
    return [("upsert", {"id": list(range(n)), "day": [day] * n, "seq": [seq] * n})]


class Soak:
    """One run. `gate` is held by the judge: writers pass it before each commit, so that a comparison sees none under way."""

    def __init__(self, directory: Path, seed: int, kill_every_s: float) -> None:
        self.directory = directory
        self.seed = seed
        self.kill_every_s = kill_every_s
        self.figures = Figures()
        self.acknowledged: Counter[str] = Counter()
        self.dropped_days: set[str] = set()
        self.is_over = threading.Event()
        self._counts = threading.Lock()
        self._pause = threading.Condition()
        self._n_under_way = 0
        self._is_paused = False
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._server = ServerProcess(directory, port=self.port).start()

    # work

    @contextmanager
    def _working(self):
        with self._pause:
            self._pause.wait_for(lambda: not self._is_paused)
            self._n_under_way += 1
        try:
            yield
        finally:
            with self._pause:
                self._n_under_way -= 1
                self._pause.notify_all()

    @contextmanager
    def _stillness(self):
        with self._pause:
            self._is_paused = True
            assert self._pause.wait_for(lambda: self._n_under_way == 0, _RETRY_S), "a call hangs"
        try:
            yield
        finally:
            with self._pause:
                self._is_paused = False
                self._pause.notify_all()

    def _connect(self) -> Store:
        return storage_engine.connect(f"flashlake://127.0.0.1:{self.port}", connect_s=_RETRY_S, retry_s=_RETRY_S)

    def _repeat(self, work: Callable[[Store], None], pause_s: float = 0.0) -> None:
        with self._connect() as store:
            while not self.is_over.is_set():
                with self._working():
                    work(store)
                if pause_s:
                    self.is_over.wait(pause_s)

    def _write(self, name: str) -> None:
        def work(store: Store) -> None:
            seq = self.acknowledged[name] + 1
            ops = [WriteOp(f"soak.{name}", kind, pa.table(columns)) for kind, columns in commit_of(self.seed, name, seq)]  # type: ignore[arg-type]
            store.commit(tuple(self._shaped(store, op) for op in ops), (), WriteId(f"soak-{name}", seq))
            with self._counts:
                self.acknowledged[name] = seq
                self.figures.commits[name] += 1
                self.figures.rows += sum(op.rows.num_rows for op in ops)

        self._repeat(work)

    @staticmethod
    def _shaped(store: Store, op: WriteOp) -> WriteOp:
        """With the columns that others have added since, as null."""
        descriptor = store.table(op.table).descriptor
        if op.kind == "delete":
            return op
        rows = op.rows
        for column in descriptor.columns:
            if column.name not in rows.column_names:
                rows = rows.append_column(column.name, pa.nulls(rows.num_rows, column.arrow.type))
        return WriteOp(op.table, op.kind, rows)

    def _read(self) -> None:
        chance = random.Random(self.seed)

        def work(store: Store) -> None:
            keys = [chance.randrange(N_KEYS) for _ in range(20)]
            found = store.table("soak.pk").lookup({"writer": [k % 7 for k in keys], "k": keys}, missing="null").to_pylist()
            for key, row in zip(keys, found, strict=True):
                assert row["note"] in (None, f"{row['seq']}-{key}"), f"a lookup of {key} returned {row}"
            total = store.table("soak.total").read()
            assert len(set(total["k"].to_pylist())) == total.num_rows, "a key is there twice"
            with self._counts:
                self.figures.reads += 2

        self._repeat(work, 0.05)

    def _consume(self) -> None:
        """A consumer sees each (seq, i) of the log once, in order per bucket."""
        seen: set[tuple[int, int]] = set()

        def work(store: Store) -> None:
            consumer = store.table("soak.log").consumer("soak")
            rows = consumer.poll(20_000)
            if rows is None:
                return
            pairs = list(zip(rows["seq"].to_pylist(), rows["i"].to_pylist(), strict=True))
            consumer.commit()
            assert not seen.intersection(pairs) and len(set(pairs)) == len(pairs), "a row was consumed twice"  # noqa: PT018
            seen.update(pairs)
            self.figures.polled += len(pairs)

        self._repeat(work, 0.2)

    def _change(self) -> None:
        """DDL beside it all: columns are added, old partitions dropped, backups taken."""
        chance = random.Random(self.seed + 1)
        n_backups = 0

        def work(store: Store) -> None:
            with suppress(StoreUnavailable):  # killed in the middle of it: it is there or not, and both are right
                change(store)

        def change(store: Store) -> None:
            nonlocal n_backups
            what = chance.choice(["column", "partition", "partition", "backup"])
            if what == "column" and self.figures.columns_added < 40:
                name = chance.choice(["log", "pk", "days"])
                if len(store.table(f"soak.{name}").descriptor.columns) < 12:
                    added = f"added{self.figures.columns_added}"
                    if added not in store.table(f"soak.{name}").descriptor.column_names:
                        store.execute(f"ALTER TABLE soak.{name} ADD {added} STRING")
                    self.figures.columns_added += 1
            elif what == "partition":
                old = sorted(store.table("soak.days").partitions())[:-2]
                if old:
                    self.dropped_days.add(old[0])
                    store.execute(f"ALTER TABLE soak.days DROP IF EXISTS PARTITION (day = '{old[0]}')")
                    self.figures.partitions_dropped += 1
            elif what == "backup":
                n_backups += 1
                store.backup(self.directory.with_name(f"backup{n_backups}-{time.monotonic_ns()}"))
                self.figures.backups += 1

        self._repeat(work, 1.0)

    # the judge

    def judge(self) -> None:
        """Every table against what the acknowledged commits leave. Nothing is under way."""
        with self._connect() as store:
            self._judge_log(store)
            self._judge_rows(store, "pk", self._expected_pk())
            self._judge_rows(store, "total", self._expected_total())
            self._judge_rows(store, "days", self._expected_days())
        self.figures.checks += 1

    def _commits(self, name: str, first: int = 1) -> list[list[tuple[str, dict[str, list[Any]]]]]:
        return [commit_of(self.seed, name, seq) for seq in range(first, self.acknowledged[name] + 1)]

    def _judge_log(self, store: Store) -> None:
        rows = store.table("soak.log").scan(["seq", "i"]).read_all()
        found = Counter(zip(rows["seq"].to_pylist(), rows["i"].to_pylist(), strict=True))
        expected = Counter((seq, i) for ops in self._commits("log") for _, op in ops for seq, i in zip(op["seq"], op["i"], strict=True))
        assert found == expected, f"log: {(expected - found).total()} rows lost, {(found - expected).total()} too many"
        assert store.table("soak.log").count() == expected.total()
        self.figures.rows_compared += expected.total()

    def _expected_pk(self) -> dict[Any, Any]:
        rows: dict[Any, Any] = {}
        for (_, up), (_, gone) in self._commits("pk"):
            rows.update({k: (seq, note) for k, seq, note in zip(up["k"], up["seq"], up["note"], strict=True)})
            for k in gone["k"]:
                rows.pop(k, None)
        return rows

    def _expected_total(self) -> dict[Any, Any]:
        rows: dict[Any, Any] = {}
        for ((_, up),) in self._commits("total"):
            for k, n, high in zip(up["k"], up["n"], up["high"], strict=True):
                before = rows.get(k, (0, 0))
                rows[k] = (before[0] + n, max(before[1], high))
        return rows

    def _expected_days(self) -> dict[Any, Any]:
        rows: dict[Any, Any] = {}
        for ((_, up),) in self._commits("days"):
            if up["day"][0] not in self.dropped_days:  # one day per commit
                rows.update({(i, day): (seq,) for i, day, seq in zip(up["id"], up["day"], up["seq"], strict=True)})
        return rows

    def _judge_rows(self, store: Store, name: str, expected: dict[Any, Any]) -> None:
        keys, values = {"pk": (["k"], ["seq", "note"]), "total": (["k"], ["n", "high"]), "days": (["id", "day"], ["seq"])}[name]
        read = store.table(f"soak.{name}").read().to_pylist()
        found = {row[keys[0]] if len(keys) == 1 else tuple(row[k] for k in keys): tuple(row[v] for v in values) for row in read}
        assert len(found) == len(read), f"{name}: a key is there twice"
        wrong = {key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)}
        assert not wrong, f"{name}: {len(wrong)} of {len(expected)} rows differ, the first: {sorted(wrong, key=str)[0]}"
        assert store.table(f"soak.{name}").count() == len(expected)
        self.figures.rows_compared += len(expected)

    # the run

    def run(self, seconds: float, report: Callable[[str], None] = lambda _: None, kills_min: int = 0) -> Figures:
        begun = time.monotonic()
        with self._connect() as store:
            store.execute(_DDL)
        work = [*(lambda name=name: self._write(name) for name in WRITERS), self._read, self._consume, self._change]
        with ThreadPoolExecutor(len(work)) as pool:
            futures = [pool.submit(one) for one in work]
            try:
                while time.monotonic() - begun < seconds or len(self.figures.recoveries_s) < kills_min:
                    if self.is_over.wait(self.kill_every_s * (0.75 + random.Random(len(self.figures.recoveries_s)).random() / 2)):
                        break
                    for future in futures:
                        if future.done():
                            future.result()
                            raise AssertionError("a worker has ended")
                    self._kill()
                    with self._stillness():
                        self.judge()
                    n_commits = self.figures.commits.total()
                    report(f"{time.monotonic() - begun:,.0f} s: {len(self.figures.recoveries_s)} kills, {n_commits:,} commits")
            finally:
                self.is_over.set()
                with self._pause:
                    self._is_paused = False
                    self._pause.notify_all()
            for future in futures:
                future.result(_RETRY_S)
        self.judge()
        self.figures.seconds = time.monotonic() - begun
        return self.figures

    def _kill(self) -> None:
        """At any moment; the time from the start of the next process to the first answer is a recovery."""
        self._server.kill()
        begun = time.monotonic()
        self._server = ServerProcess(self.directory, port=self.port).start()
        with self._connect() as store:
            store.table("soak.pk").lookup({"writer": [0], "k": [0]}, missing="null")
        self.figures.recoveries_s.append(time.monotonic() - begun)

    def close(self) -> None:
        """Stop the server; the directory must then be sound."""
        assert self._server.stop() == 0, self._server.log()
        damages = check_store(self.directory, keys=True).damages
        assert not damages, damages


def soak(
    directory: Path, seconds: float, kill_every_s: float, seed: int = 1, report: Callable[[str], None] = lambda _: None, kills_min: int = 0
) -> Figures:
    """Run one soak to its end: for so long, and until so many kills."""
    run = Soak(directory / "store", seed, kill_every_s)
    try:
        figures = run.run(seconds, report, kills_min)
    except BaseException:
        run._server.kill()
        raise
    run.close()
    return figures


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("MINUTES", "30")))
    parser.add_argument("--kill-every", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "1")))
    options = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="flashlake-soak-") as directory:
        figures = soak(Path(directory), options.minutes * 60, options.kill_every, options.seed, console.print)
    console.print(figures.table(), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
