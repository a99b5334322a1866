"""The contract's fixtures: one store per backend, the same tests over all of them.

A backend joins with one entry in BACKENDS: how to open a store over a directory, again after a restart, and once more beside the first.
What it declares not to have, `@pytest.mark.needs("feature")` turns into a test that it refuses by name.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

import storage_engine
from storage_engine import Store
from storage_engine.errors import UnsupportedByBackend
from storage_engine.server import ServerProcess

_numbers = itertools.count(1)


class Deployment(Protocol):
    """A store somewhere: `store` is the open handle; `peer()` is another client of the same store; both die with close()."""

    store: Store

    def peer(self) -> Store: ...
    def restart(self) -> None: ...
    def close(self) -> None: ...


class Embedded:
    def __init__(self, directory: Path) -> None:
        self._url = directory.as_uri()
        self.store = storage_engine.connect(self._url)

    def peer(self) -> Store:
        return self.store

    def restart(self) -> None:
        self.store.close()
        self.store = storage_engine.connect(self._url)

    def close(self) -> None:
        self.store.close()


class Served:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server = ServerProcess(directory).start()
        self._peers: list[Store] = []
        self.store = storage_engine.connect(self._server.url)

    def peer(self) -> Store:
        self._peers.append(storage_engine.connect(self._server.url))
        return self._peers[-1]

    def restart(self) -> None:
        self.store.close()
        assert self._server.stop() == 0, self._server.log()
        self._server = ServerProcess(self._directory).start()
        self.store = storage_engine.connect(self._server.url)

    def close(self) -> None:
        for store in (self.store, *self._peers):
            store.close()
        self._server.kill()


BACKENDS = {"embedded": Embedded, "server": Served}


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One store for all tests of a module: each test has a database of its own."""
    deployment = BACKENDS[request.param](tmp_path_factory.mktemp("store"))
    yield deployment
    deployment.close()


@pytest.fixture
def store(shared: Deployment) -> Store:
    return shared.store


@pytest.fixture(params=sorted(BACKENDS))
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    """A store of this test alone, to be restarted."""
    deployment = BACKENDS[request.param](tmp_path / "store")
    yield deployment
    deployment.close()


@pytest.fixture
def db() -> str:
    """The name of a database that no other test uses."""
    return f"db{next(_numbers)}"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(feature): a backend without that capability must refuse by its name")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    deployment = pyfuncitem.funcargs.get("shared") or pyfuncitem.funcargs.get("own")
    features = [feature for marker in pyfuncitem.iter_markers("needs") for feature in marker.args]
    lacking = [feature for feature in features if deployment is not None and feature not in deployment.store.capabilities]
    if not lacking:
        return (yield)
    with pytest.raises(UnsupportedByBackend, match="|".join(lacking)):
        yield
    return True


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
