"""Fixtures: a real server over a real store in this process, a proxy in front of it that cuts connections, and a secured server process."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.server import FlightServer
from tests.server.secured import Secured


class CuttingProxy:
    """Forwards TCP connections to a port; cuts all of them once after a number of bytes in one direction."""

    def __init__(self, port: int) -> None:
        self._upstream = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}
        self._is_closed = False
        self.n_cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, n_bytes: int, direction: str) -> None:
        """Let n_bytes more pass "to_server" or "to_client", then cut, once."""
        with self._lock:
            self._left = {direction: n_bytes}

    def disarm(self) -> bool:
        """No cut any more; True if one was still to come."""
        with self._lock:
            was_armed = bool(self._left)
            self._left = {}
            return was_armed

    def close(self) -> None:
        self._is_closed = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                continue
            try:
                far = socket.create_connection(self._upstream)
            except OSError:
                near.close()
                continue
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        targets = {near: (far, "to_server"), far: (near, "to_client")}
        with near, far:
            while not self._is_closed:
                for source in select.select(list(targets), [], [], 0.5)[0]:
                    try:
                        received = source.recv(1 << 16)
                        target, direction = targets[source]
                        kept = received[: self._allowed(direction, len(received))]
                        target.sendall(kept)
                    except OSError:
                        return
                    if len(kept) < max(len(received), 1):
                        return

    def _allowed(self, direction: str, n_bytes: int) -> int:
        with self._lock:
            if direction not in self._left:
                return n_bytes
            left = self._left[direction]
            if n_bytes < left:
                self._left[direction] = left - n_bytes
                return n_bytes
            self._left = {}
            self.n_cuts += 1
            return min(left, n_bytes - 1)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[EmbeddedBackend]:
    backend = EmbeddedBackend.open(tmp_path / "store", sync="none")
    yield backend
    backend.close()


@pytest.fixture
def server(backend: EmbeddedBackend) -> FlightServer:
    # not shut down: shutdown() waits for the last open stream, and some tests break theirs on purpose
    return FlightServer(backend)


@pytest.fixture
def proxy(server: FlightServer) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    secured = Secured(tmp_path_factory.mktemp("secured"))
    yield secured
    secured.admin.close()
    secured.server.kill()
    assert secured.secrets_in_log() == []  # whatever the module's tests have done
