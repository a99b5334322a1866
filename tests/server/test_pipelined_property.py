"""Pipelined writers over a disk whose syncs fail at random and connections that break at random, held to a model of their order.

Each acknowledged commit is there once and in its writer's order; one that was refused is not there; one that was given up is there at most
once, and then in its place. The runs are drawn by a seed; longer: FLASHLAKE_PIPELINES=200.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

import storage_engine
from storage_engine.api import CommitRequest, CommitStream, WriteOp
from storage_engine.client.flight import FlightBackend
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.errors import RetriableError, UserError
from storage_engine.server import FlightServer
from storage_engine.server.socket_server import SocketServer
from tests.server.conftest import CuttingProxy
from tests.torture.simulated_disk import Fault, SimulatedDisk

STORE = Path("/store")
N_WRITERS = 3
N_COMMITS = 60
RUNS = int(os.environ.get("FLASHLAKE_PIPELINES", "3"))


@dataclass
class Fate:
    """What a writer was told of its commits, by number."""

    acknowledged: list[int] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)
    n_failures: int = 0


def commit_of(writer: int, number: int, *, is_wrong: bool) -> CommitRequest:
    """A row of the log and one more in the writer's total; a wrong one is refused by the server."""
    rows = pa.table({"w": [writer], "wrong" if is_wrong else "n": [number]})
    return CommitRequest(
        (WriteOp("d.total", "upsert", pa.table({"w": [writer], "n": [1]})), WriteOp("d.log", "append", rows)),
    )


class Writer:
    """One writer's life: streams that end when it gives up, commits that it sends until they are taken."""

    def __init__(self, number: int, backend: FlightBackend, chance: random.Random) -> None:
        self.number = number
        self.fate = Fate()
        self._backend = backend
        self._chance = chance
        self._pending: list[int] = []

    def run(self) -> Fate:
        stream = self._backend.commit_stream(self._chance.choice([1, 2, 5, 8]))
        for number in range(N_COMMITS):
            is_wrong = self._chance.random() < 0.06
            if is_wrong:
                self.fate.refused.add(number)
            request = commit_of(self.number, number, is_wrong=is_wrong)
            while not self._tried(partial(stream.send, request)):
                if self._chance.random() < 0.2:
                    stream = self._another(stream)
            self._pending.append(number)
            if self._chance.random() < 0.1:
                stream = self._finished(stream)
        self._finished(stream).close()
        return self.fate

    def _tried(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except UserError:
            return False  # of an earlier commit, which is known to be wrong
        except RetriableError:
            self.fate.n_failures += 1
            return False
        return True

    def _finished(self, stream: CommitStream) -> CommitStream:
        while not self._tried(stream.finish):
            if self._chance.random() < 0.1:
                return self._another(stream)
        self.fate.acknowledged += [number for number in self._pending if number not in self.fate.refused]
        self._pending = []
        return stream

    def _another(self, stream: CommitStream) -> CommitStream:
        stream.close()
        self.fate.given_up.update(self._pending)
        self._pending = []
        return self._backend.commit_stream(self._chance.choice([1, 2, 5, 8]))


class Trouble:
    """Failing syncs and cut connections until it is over."""

    def __init__(self, disk: SimulatedDisk, proxies: list[CuttingProxy], chance: random.Random) -> None:
        self._disk, self._proxies, self._chance = disk, proxies, chance
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(self._chance.choice([0.002, 0.005, 0.02])):
            if self._chance.random() < 0.6:
                times = self._chance.choice([1, 2, 2, 3, 4, 7])
                operation = self._chance.choice(["fdatasync", "fdatasync", "fdatasync", "write", "truncate"])
                self._disk.plan(Fault("error", 0, frozenset({operation}), errno.EIO, times))
            if self._chance.random() < 0.25:
                direction = self._chance.choice(["to_server", "to_client"])
                self._chance.choice(self._proxies).cut_after(self._chance.randrange(1, 4000), direction)


@pytest.mark.parametrize("seed", range(RUNS))
def test_what_writers_were_told_is_what_is_there(seed: int) -> None:
    chance = random.Random(seed)
    disk = SimulatedDisk(seed)
    disk.make_directory(STORE)
    backend = EmbeddedBackend.open(STORE, disk=disk, maintenance=False)
    server = FlightServer(backend)
    lanes = SocketServer(server)
    proxies = [CuttingProxy(server.port), CuttingProxy(lanes.port)]
    server.lane_address = lambda principal: {**lanes.address_for(principal), "unix": None, "port": proxies[1].port}
    stores = [storage_engine.connect(f"flashlake://127.0.0.1:{proxies[0].port}", retry_s=60.0) for _ in range(N_WRITERS)]
    stores[0].execute("""
        CREATE TABLE d.log (w BIGINT NOT NULL, n BIGINT NOT NULL) WITH ('bucket.num' = '1');
        CREATE TABLE d.total (w BIGINT NOT NULL, n BIGINT, PRIMARY KEY (w) NOT ENFORCED)
          WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum');
    """)
    writers = []
    for number, store in enumerate(stores):
        assert isinstance(store.backend, FlightBackend)
        writers.append(Writer(number, store.backend, random.Random(seed * 100 + number)))
    trouble = Trouble(disk, proxies, chance)
    with ThreadPoolExecutor(N_WRITERS + 1) as pool:
        background = pool.submit(trouble.run)
        try:
            fates = [future.result(120) for future in [pool.submit(writer.run) for writer in writers]]
        finally:
            trouble.is_over.set()
            background.result(30)
    disk.clear_plans()
    backend.commit(CommitRequest((WriteOp("d.log", "append", pa.table({"w": [-1], "n": [0]})),)))  # settles what was of unknown outcome

    def judge(backend: EmbeddedBackend) -> None:
        store = storage_engine.connection.wrap(backend)
        rows = store.table("d.log").scan(["w", "n"]).read_all().to_pylist()
        totals = {row["w"]: row["n"] for row in store.table("d.total").read().to_pylist()}
        for number, fate in enumerate(fates):
            there = [row["n"] for row in rows if row["w"] == number]
            assert there == sorted(there), f"writer {number}: out of order"
            assert not [n for n, times in Counter(there).items() if times > 1], f"writer {number}: doubled"
            assert not set(fate.acknowledged) - set(there), f"writer {number}: acknowledged and lost"
            assert not set(there) - set(fate.acknowledged) - fate.given_up, f"writer {number}: there, though it was refused"
            assert not set(there) & fate.refused
            assert totals.get(number, 0) == len(there)

    judge(backend)
    for proxy in proxies:
        proxy.close()
    lanes.close()
    for store in stores:
        store.close()
    disk.restart("lost")
    again = EmbeddedBackend.open(STORE, disk=disk, maintenance=False)
    judge(again)
    again.close()
    assert sum(fate.n_failures for fate in fates) > 0
    assert disk.counts.faults["EIO from fdatasync"] > 5
