"""SIGKILL of a process that rescales and alters tables without pause: each change is whole or not there, no row is lost or doubled."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import storage_engine
from storage_engine import Store
from storage_engine.engine.fsck import check_store

pytestmark = pytest.mark.crash

ROUNDS = max(int(os.environ.get("CRASH_ROUNDS", "6")) // 2, 1)
SEED = int(os.environ.get("CRASH_SEED", "1"))
N_KEYS = 3_000
PARTITIONS = ("p0", "p1", "p2")


def make_tables(store: Store) -> None:
    store.execute("""
        CREATE TABLE IF NOT EXISTS kill.t (p STRING NOT NULL, k BIGINT NOT NULL, v BIGINT, PRIMARY KEY (p, k) NOT ENFORCED)
          PARTITIONED BY (p) WITH ('bucket.num' = '2');
        CREATE TABLE IF NOT EXISTS kill.whole (k BIGINT NOT NULL, v BIGINT, PRIMARY KEY (k) NOT ENFORCED) WITH ('bucket.num' = '3')
    """)


def alter_until_killed(directory: str, seed: int) -> None:
    """Rescale both tables and rename a column, again and again, with an upsert of all keys in between; a line per finished round."""
    chance = random.Random(seed)
    with storage_engine.connect(Path(directory).as_uri()) as store:
        make_tables(store)
        while True:
            keys = list(range(N_KEYS))
            value = chance.randrange(1_000_000)
            column = store.describe("kill.whole").column_names[1]
            store.table("kill.whole").upsert({"k": keys, column: [value + k for k in keys]})
            store.table("kill.t").upsert({"p": [PARTITIONS[k % 3] for k in keys], "k": keys, "v": [value + k for k in keys]})
            store.execute(f"ALTER TABLE kill.t SET ('bucket.num' = '{chance.randint(1, 8)}')")
            store.execute(f"ALTER TABLE kill.whole RENAME {column} TO {'w' if column == 'v' else 'v'}")
            store.execute(f"ALTER TABLE kill.whole SET ('bucket.num' = '{chance.randint(1, 8)}')")
            os.write(1, b"round\n")


def kill_after(directory: Path, seed: int, n_rounds: int, grace_s: float) -> None:
    child = subprocess.Popen([sys.executable, __file__, str(directory), str(seed)], stdout=subprocess.PIPE, bufsize=0)
    assert child.stdout is not None, "opened as a pipe"
    seen, deadline = b"", time.monotonic() + 90
    try:
        while seen.count(b"\n") < n_rounds:
            assert select.select([child.stdout], [], [], max(deadline - time.monotonic(), 0))[0], "no round in time"
            received = os.read(child.stdout.fileno(), 4096)
            assert received, f"the process ended by itself, status {child.wait()}"
            seen += received
        select.select([child.stdout], [], [], grace_s)
    finally:
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        child.wait()


def judge(store: Store) -> None:
    """All rows of a table carry the value of one upsert, each key once, wherever its bucket is; the changelog says the same."""
    for name in ("kill.t", "kill.whole"):
        table = store.table(name)
        rows = table.read()
        keys, values = rows["k"].to_pylist(), rows[table.descriptor.column_names[-1]].to_pylist()
        assert sorted(keys) in ([], list(range(N_KEYS)))
        assert len({value - key for key, value in zip(keys, values, strict=True)}) <= 1
        assert table.count() == len(keys)
        wanted = {"k": keys} if name == "kill.whole" else {"p": [PARTITIONS[k % 3] for k in keys], "k": keys}
        if keys:
            assert table.lookup(wanted, missing="null")["_found"].to_pylist() == [True] * len(keys)
        state: dict[int, int] = {}
        for kind, key, value in zip(
            *(table.scan().read_all()[c].to_pylist() for c in ("_change_type", "k", rows.column_names[-1])), strict=True
        ):
            if kind == "-U":
                assert state.pop(key) == value
            else:
                assert key not in state
                state[key] = value
        assert state == dict(zip(keys, values, strict=True))


def test_a_rescale_that_is_killed_anywhere_leaves_every_row_once_and_is_completed_later(tmp_path):
    chance = random.Random(SEED)
    directory = tmp_path / "store"
    n_cut_short = 0
    for number in range(ROUNDS):
        kill_after(directory, SEED + number, chance.choice([1, 1, 2, 3]), chance.random() * 0.4)
        assert check_store(directory, keys=True).damages == []
        with storage_engine.connect(directory.as_uri(), maintenance=False) as store:
            make_tables(store)
            waiting = [table for table in store.backend.core.state.tables.values() if table.bucket_counts]
            n_cut_short += len(waiting)
            judge(store)
            for table in waiting:
                n = table.descriptor.n_buckets
                store.execute(f"ALTER TABLE {table.descriptor.name} SET ('bucket.num' = '{n}')")
                assert not table.bucket_counts
            judge(store)
    if ROUNDS >= 50:
        assert n_cut_short, "no kill met a rescale"


if __name__ == "__main__":
    alter_until_killed(sys.argv[1], int(sys.argv[2]))
