"""The contract's fixtures: one store per backend, the same tests over all of them.

A backend joins with one entry in BACKENDS: how to open a store over a directory, again after a restart, and once more beside the first.
What it declares not to have, `@pytest.mark.needs("feature")` turns into a test that it refuses by name.
FLASHLAKE_TEST_FLUSS=1 adds Apache Fluss, on a cluster of one node that lives as long as the run (fluss://host:port: one that runs already).
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

import storage_engine
from storage_engine import Store
from storage_engine.access import Users
from storage_engine.errors import UnsupportedByBackend
from storage_engine.server import ServerProcess
from tests.server.authority import Authority

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
    _options: Sequence[str] = ()
    _access: Mapping[str, Any] = {}

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server = ServerProcess(directory, options=self._options).start()
        self._peers: list[Store] = []
        self.store = storage_engine.connect(self._server.url, **self._access)

    def peer(self) -> Store:
        self._peers.append(storage_engine.connect(self._server.url, **self._access))
        return self._peers[-1]

    def restart(self) -> None:
        self.store.close()
        assert self._server.stop() == 0, self._server.log()
        self._server = ServerProcess(self._directory, options=self._options).start()
        self.store = storage_engine.connect(self._server.url, **self._access)

    def close(self) -> None:
        for store in (self.store, *self._peers):
            store.close()
        self._server.kill()


class Secured(Served):
    """A server with authentication and TLS on; the tests' user may do everything, by grants."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory.parent)
        with storage_engine.connect(directory.as_uri()) as store:
            Users(store.backend).create("tester", "correct horse")
            Users(store.backend).make_administrator("tester")
        self._options = ["--authentication", "on", *authority.server("127.0.0.1").options]
        self._access = {"user": "tester", "password": "correct horse", "tls_ca": authority.ca}
        super().__init__(directory)


class OnFluss:
    """A database server shared by all tests of the run, emptied before each use. A restart is a new connection."""

    cluster_url = ""

    def __init__(self, directory: Path) -> None:
        self._peers: list[Store] = []
        self.store = storage_engine.connect(self.cluster_url)
        for name in self.store.tables():
            self.store.execute(f"DROP TABLE IF EXISTS {name}")

    def peer(self) -> Store:
        self._peers.append(storage_engine.connect(self.cluster_url))
        return self._peers[-1]

    def restart(self) -> None:
        self.store.close()
        self.store = storage_engine.connect(self.cluster_url)

    def close(self) -> None:
        for store in (self.store, *self._peers):
            store.close()


FLUSS = os.environ.get("FLASHLAKE_TEST_FLUSS", "")
BACKENDS = {"embedded": Embedded, "server": Served, "secured": Secured, **({"fluss": OnFluss} if FLUSS else {})}
SECURED_MODULES = ("test_log_tables.py", "test_users.py")
"""What runs with authentication and TLS on too; FLASHLAKE_TEST_SECURED=1: everything."""
FLUSS_DIFFERS = {
    "test_two_tables_do_not_differ_in_case_alone": "Fluss tells names by case, and its tables are not read by an engine that does not",
    "test_a_scan_whose_partition_is_dropped_before_it_is_read_ends_with_an_error_never_with_other_rows": (
        "Fluss has no store-wide version, which tells a partition from its successor"
    ),
    "test_an_upsert_that_changes_nothing_writes_nothing": "Fluss writes -U and +U for a row that stays as it is",
    "test_versioned_keeps_the_row_whose_version_is_as_large_or_larger": "Fluss writes a change for each row of a key in one batch",
    "test_a_wal_changelog_writes_whole_rows_blind_and_never_has_an_old_row": "Fluss writes a change for each row of a key in one batch",
}


@pytest.fixture(scope="session", autouse=bool(FLUSS))
def fluss_cluster(request: pytest.FixtureRequest) -> None:
    """A Fluss for the run, when it is asked for."""
    if FLUSS:
        OnFluss.cluster_url = request.getfixturevalue("fluss_url")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _is_secured(item) and item.path.name not in SECURED_MODULES]
    if left_out and not os.environ.get("FLASHLAKE_TEST_SECURED"):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    for item in items:
        name, _, parameters = item.name.partition("[")
        if name in FLUSS_DIFFERS and "fluss" in parameters.rstrip("]").split("-"):
            item.add_marker(pytest.mark.xfail(reason=FLUSS_DIFFERS[name], strict=True))


def _is_secured(item: pytest.Item) -> bool:
    return item.path.parent.name == "contract" and "secured" in item.name.partition("[")[2].rstrip("]").split("-")


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


def lacking_features(item: pytest.Function) -> list[str]:
    """What the test needs and the backend it runs on does not declare."""
    deployment = item.funcargs.get("shared") or item.funcargs.get("own")
    features = [feature for marker in item.iter_markers("needs") for feature in marker.args]
    return [feature for feature in features if deployment is not None and feature not in deployment.store.capabilities]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Function) -> Iterator[None]:
    """A fixture that makes the test's tables may meet the refusal already."""
    try:
        return (yield)
    except UnsupportedByBackend as refusal:
        if not any(feature in str(refusal) for feature in lacking_features(item)):
            raise
        item.runtest = lambda: None  # refused by name, as it has to be


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    lacking = lacking_features(pyfuncitem)
    if not lacking:
        return (yield)
    with pytest.raises(UnsupportedByBackend, match="|".join(lacking)):  # noqa: PT012 - the test runs in here
        try:
            yield
        except AssertionError as error:  # the test waited for a refusal of another text
            raise error.__context__ or error from None
    return True


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
