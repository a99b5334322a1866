"""The workload that is killed: what commit number n of a writer contains is a function of (seed, writer, n), so a survivor can be judged.

Run as a process it writes to an embedded store and prints `writer sequence` for each acknowledged commit, unbuffered.
Each commit touches three tables in several buckets and partitions, moves the writer's progress, and has a write id.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

import storage_engine
from storage_engine import Progress, Store, TableBucket, WriteId, WriteOp

N_WRITERS = 3
N_KEYS = 40
REOPEN_EVERY = 25
_BUCKET = TableBucket("", 0)  # of crash.pk: progress keeps buckets that there are
_TABLES = """
    CREATE TABLE IF NOT EXISTS crash.log (writer BIGINT NOT NULL, seq BIGINT NOT NULL, i BIGINT NOT NULL, day STRING NOT NULL)
      PARTITIONED BY (day) WITH ('bucket.num' = '3', 'bucket.key' = 'i');
    CREATE TABLE IF NOT EXISTS crash.pk (
        writer BIGINT NOT NULL, k BIGINT NOT NULL, seq BIGINT, note STRING, PRIMARY KEY (writer, k) NOT ENFORCED
      ) WITH ('bucket.num' = '3', 'bucket.key' = 'writer');
    CREATE TABLE IF NOT EXISTS crash.total (writer BIGINT NOT NULL, n BIGINT, high BIGINT, PRIMARY KEY (writer) NOT ENFORCED)
      WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum', 'fields.high.agg' = 'max')
"""

Row = tuple[int | None, str | None]


@dataclass(frozen=True)
class Commit:
    """One commit, as values: `appended` log rows (i, day); keys to upsert whole, to update in `note` only, to delete."""

    writer: int
    seq: int
    appended: list[tuple[int, str]]
    upserted: dict[int, Row]
    noted: dict[int, str]
    deleted: list[int]


def commit_of(seed: int, writer: int, seq: int) -> Commit:
    chance = random.Random(f"{seed}/{writer}/{seq}")
    n_rows = chance.choice([1, 5, 60, 700])
    keys = chance.sample(range(N_KEYS), 12)
    return Commit(
        writer,
        seq,
        appended=[(i, f"2017-01-0{1 + chance.randrange(3)}") for i in range(n_rows)],
        upserted={k: (seq, f"u{seq}") for k in keys[:6]},
        noted={k: f"n{seq}" for k in keys[6:9]},
        deleted=keys[9:],
    )


def request_of(commit: Commit) -> tuple[list[WriteOp], list[Progress], WriteId]:
    writer, seq = commit.writer, commit.seq
    n = len(commit.appended)
    days = [day for _, day in commit.appended]
    log = pa.table({"writer": [writer] * n, "seq": [seq] * n, "i": [i for i, _ in commit.appended], "day": days})
    keys = list(commit.upserted)
    rows = pa.table({"writer": [writer] * len(keys), "k": keys, "seq": [seq] * len(keys), "note": [commit.upserted[k][1] for k in keys]})
    notes = pa.table({"writer": [writer] * len(commit.noted), "k": list(commit.noted), "note": list(commit.noted.values())})
    gone = pa.table({"writer": [writer] * len(commit.deleted), "k": commit.deleted})
    ops = [
        WriteOp("crash.log", "append", log),
        WriteOp("crash.pk", "upsert", rows),
        WriteOp("crash.total", "upsert", pa.table({"writer": [writer], "n": [n], "high": [seq]})),
        WriteOp("crash.pk", "upsert", notes, ("writer", "k", "note")),
        WriteOp("crash.pk", "delete", gone),
    ]
    before = {"crash.pk": {_BUCKET: seq - 1}} if seq > 1 else {}
    return ops, [Progress(owner_of(writer), {"crash.pk": {_BUCKET: seq}}, before)], WriteId(f"writer-{writer}", seq)


def owner_of(writer: int) -> str:
    return f"job:writer-{writer}"


def applied_to(rows: dict[tuple[int, int], Row], commit: Commit) -> None:
    """The model: what a commit does to the current rows of crash.pk."""
    for k, row in commit.upserted.items():
        rows[commit.writer, k] = row
    for k, note in commit.noted.items():
        rows[commit.writer, k] = (rows.get((commit.writer, k), (None, None))[0], note)
    for k in commit.deleted:
        rows.pop((commit.writer, k), None)


def make_tables(store: Store) -> None:
    store.execute(_TABLES)


def last_sequence(store: Store, writer: int) -> int:
    """The sequence of the writer's last commit that the store holds; 0: none."""
    recorded = store.progress(owner_of(writer)).get(owner_of(writer))
    return recorded.offsets["crash.pk"][_BUCKET] if recorded else 0


def sequences(store: Store, writer: int) -> Iterator[int]:
    """The last commit once more (a retry), then new ones for ever."""
    seq = max(last_sequence(store, writer), 1)
    while True:
        yield seq
        seq += 1


def main(directory: str, seed: int) -> None:
    """Write until killed: N_WRITERS threads over one embedded store; now and then it is closed and opened again."""
    acknowledge = threading.Lock()

    def write(store: Store, writer: int) -> None:
        for n, seq in enumerate(sequences(store, writer)):
            store.commit(*request_of(commit_of(seed, writer, seq)))
            with acknowledge:
                sys.stdout.write(f"{writer} {seq}\n")
                sys.stdout.flush()
            if n == REOPEN_EVERY:
                return

    while True:
        with storage_engine.connect(Path(directory).absolute().as_uri()) as store:
            make_tables(store)
            with ThreadPoolExecutor(N_WRITERS) as pool:
                for written in [pool.submit(write, store, writer) for writer in range(N_WRITERS)]:
                    written.result()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
