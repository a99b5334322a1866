"""SIGKILL of a server while clients write through it: they ride over it, and each of their commits is applied once."""

from __future__ import annotations

import os
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import storage_engine
from storage_engine.server import ServerProcess
from tests.crash import workload
from tests.crash.survivor import judge
from tests.waiting import let_pass

pytestmark = pytest.mark.crash

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "6"))
SEED = int(os.environ.get("CRASH_SEED", "1"))


class Acknowledgements:
    """Counts acknowledged commits over all writers; the killer waits for a count."""

    def __init__(self) -> None:
        self.of_writer: dict[int, int] = {}
        self._n = 0
        self._grown = threading.Condition()

    def add(self, writer: int, seq: int) -> None:
        with self._grown:
            self.of_writer[writer] = seq
            self._n += 1
            self._grown.notify_all()

    def await_more(self, n: int, timeout_s: float) -> bool:
        with self._grown:
            goal = self._n + n
            return self._grown.wait_for(lambda: self._n >= goal, timeout_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_clients_ride_over_kills_of_the_server_and_every_commit_is_applied_once(tmp_path):
    chance = random.Random(SEED)
    port = free_port()
    acknowledged = Acknowledgements()
    is_over = threading.Event()

    def write(writer: int) -> None:
        with storage_engine.connect(f"flashlake://127.0.0.1:{port}", retry_s=60.0) as store:
            for seq in workload.sequences(store, writer):
                if is_over.is_set():
                    return
                store.commit(*workload.request_of(workload.commit_of(SEED, writer, seq)))
                acknowledged.add(writer, seq)

    server = ServerProcess(tmp_path / "store", port=port).start()
    with ThreadPoolExecutor(workload.N_WRITERS) as pool:
        try:
            with storage_engine.connect(server.url) as store:
                workload.make_tables(store)
            writers = [pool.submit(write, writer) for writer in range(workload.N_WRITERS)]
            for _ in range(ROUNDS):
                assert acknowledged.await_more(chance.choice([1, 5, 30]), timeout_s=60), [w.exception() for w in writers if w.done()]
                let_pass(chance.random() * 0.02)  # anywhere inside a commit
                server.kill()
                server = ServerProcess(tmp_path / "store", port=port).start()
            assert acknowledged.await_more(10, timeout_s=60)
        finally:
            is_over.set()
        for writer in writers:
            writer.result(60)

    with server, storage_engine.connect(server.url) as store:
        n_held = judge(store, SEED, acknowledged.of_writer)
    assert n_held == sum(acknowledged.of_writer.values())
    assert n_held > ROUNDS


def test_a_server_that_was_killed_holds_what_it_acknowledged_for_whoever_opens_the_directory_next(tmp_path):
    chance = random.Random(SEED)
    acknowledged = dict.fromkeys(range(workload.N_WRITERS), 0)
    for _ in range(max(ROUNDS // 3, 1)):
        with ServerProcess(tmp_path / "store") as server:
            with storage_engine.connect(server.url) as store:
                workload.make_tables(store)
                for writer in range(workload.N_WRITERS):
                    for _, seq in zip(range(chance.randrange(1, 8)), workload.sequences(store, writer), strict=False):
                        store.commit(*workload.request_of(workload.commit_of(SEED, writer, seq)))
                        acknowledged[writer] = seq
            server.kill()

        with storage_engine.connect((tmp_path / "store").as_uri()) as store:
            judge(store, SEED, acknowledged)
