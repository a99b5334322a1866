"""Auto-increment under kill -9: however many ask for the same new key at once, it gets one id, and no id is given twice, ever."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import storage_engine
from storage_engine import Store
from storage_engine.server import ServerProcess

pytestmark = pytest.mark.crash
ROUNDS = 2
ANSWERS = 60
WRITERS = 4
DDL = """CREATE TABLE IF NOT EXISTS ids.household (name STRING NOT NULL, id BIGINT, PRIMARY KEY (name) NOT ENFORCED)
    WITH ('auto-increment.fields' = 'id', 'bucket.num' = '3', 'table.auto-increment.cache-size' = '40')"""
CHILD = "import sys; from tests.crash.test_kill_ids import ask_until_killed; ask_until_killed(sys.argv[1], int(sys.argv[2]))"


def ask_until_killed(url: str, turn: int) -> None:
    """In a process of its own: writers ask for batches of names that others ask for too, and print what they are told."""
    guard = threading.Lock()
    store = storage_engine.connect(url)
    store.execute(DDL)
    connect: Callable[[], Store] = (lambda: store) if url.startswith("file:") else (lambda: storage_engine.connect(url))

    def ask(writer: int) -> None:
        chance = random.Random(10 * turn + writer)
        table = connect().table("ids.household")
        for step in range(1_000_000):
            names = [f"h{turn}-{step * 5 + chance.randrange(30)}" for _ in range(8)]
            found = table.lookup({"name": names}, insert_if_not_exists=True)["id"].to_pylist()
            with guard:
                sys.stdout.write(json.dumps(list(zip(names, found, strict=True))) + "\n")
                sys.stdout.flush()

    for writer in range(WRITERS):
        threading.Thread(target=ask, args=(writer,)).start()


def judge(store: Store, acknowledged: dict[str, int]) -> None:
    rows = store.table("ids.household").read().to_pydict()
    held = dict(zip(rows["name"], rows["id"], strict=True))
    assert len(set(held.values())) == len(held), "an id has two names"
    assert {name: held.get(name) for name in acknowledged} == acknowledged


@pytest.mark.parametrize("is_served", [False, True], ids=["embedded", "server"])
def test_ids_in_segments_stay_unique_when_the_store_is_killed(tmp_path: Path, *, is_served: bool) -> None:
    acknowledged: dict[str, int] = {}
    for turn in range(ROUNDS):
        server = ServerProcess(tmp_path / "s").start() if is_served else None
        url = server.url if server else f"file://{tmp_path / 's'}"
        arguments = [sys.executable, "-c", CHILD, url, str(turn)]
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[2])
        assert child.stdout is not None, "opened as a pipe"
        for _ in range(ANSWERS):
            for name, given in json.loads(child.stdout.readline()):
                assert acknowledged.setdefault(name, given) == given, f"{name} has two ids"
        if server:
            server.kill()
        child.kill()
        child.wait()
        child.stdout.close()
        with storage_engine.connect(f"file://{tmp_path / 's'}") as store:
            judge(store, acknowledged)
