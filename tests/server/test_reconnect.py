"""Writers over connections that are cut at random bytes on both lanes, and over a server that is killed: each write is applied once."""

from __future__ import annotations

import os
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import storage_engine
from storage_engine.client.flight import FlightBackend
from storage_engine.server import ServerProcess
from tests.server.conftest import CuttingProxy

pytestmark = pytest.mark.crash

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "14"))
SEED = int(os.environ.get("CRASH_SEED", "1"))
N_WRITERS = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class CutServer:
    """A server on fixed ports, behind one proxy per lane."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._port, self._lane_port = directory, free_port(), free_port()
        self.server = self._started()
        self.proxies = [CuttingProxy(self._port), CuttingProxy(self._lane_port)]

    def _started(self) -> ServerProcess:
        return ServerProcess(self._directory, port=self._port, sync="none", options=["--lane-port", str(self._lane_port)]).start()

    def kill_and_restart(self) -> None:
        self.server.kill()
        self.server = self._started()

    def connect(self) -> storage_engine.Store:
        """Through the proxies, over TCP on both lanes."""
        store = storage_engine.connect(f"flashlake://127.0.0.1:{self.proxies[0].port}", retry_s=60)
        backend = store.backend
        assert isinstance(backend, FlightBackend)
        ask = backend._ask_lane
        backend._ask_lane = lambda: {**(ask() or {}), "unix": None, "port": self.proxies[1].port}  # type: ignore[method-assign]
        return store


def test_each_write_is_applied_once_over_cut_connections_and_a_killed_server(tmp_path):
    chance = random.Random(SEED)
    cut = CutServer(tmp_path / "s")
    with storage_engine.connect(cut.server.url) as store:
        store.execute("""
            CREATE TABLE a.total (k STRING NOT NULL, n BIGINT, PRIMARY KEY (k) NOT ENFORCED)
              WITH ('table.merge-engine' = 'aggregation', 'fields.n.agg' = 'sum');
            CREATE TABLE a.log (x BIGINT NOT NULL, pad STRING)
        """)
    stores = [cut.connect() for _ in range(N_WRITERS)]

    def write(writer: int, turn: int, *, is_large: bool) -> None:
        stores[writer].table("a.total").upsert({"k": [f"w{writer}"], "n": [1]})
        assert stores[writer].table("a.total").count() <= N_WRITERS  # a question over Flight
        pad = "p" * 1_500_000 if is_large else "p"  # beyond a megabyte it goes over Flight
        stores[writer].table("a.log").append({"x": [writer * 1_000_000 + turn], "pad": [pad]})

    with ThreadPoolExecutor(N_WRITERS) as pool:
        for turn in range(ROUNDS):
            for proxy in cut.proxies:
                proxy.cut_after(chance.randrange(1, 2500), chance.choice(["to_server", "to_client"]))
            calls = [pool.submit(write, writer, turn, is_large=chance.random() < 0.2) for writer in range(N_WRITERS)]
            if turn % 8 == 3:
                cut.kill_and_restart()
            for call in calls:
                call.result(90)

    with storage_engine.connect(cut.server.url) as store:
        totals = dict(zip(*store.table("a.total").read().to_pydict().values(), strict=True))
        written = store.table("a.log").scan(columns=["x"]).read_all()["x"].to_pylist()
    assert totals == {f"w{writer}": ROUNDS for writer in range(N_WRITERS)}
    assert sorted(written) == sorted(writer * 1_000_000 + turn for writer in range(N_WRITERS) for turn in range(ROUNDS))
    n_cuts = [proxy.n_cuts for proxy in cut.proxies]
    assert min(n_cuts) > ROUNDS // 5, f"the lanes were cut {n_cuts} times"
    for proxy in cut.proxies:
        proxy.close()
    for store in stores:
        store.close()
    cut.server.kill()
