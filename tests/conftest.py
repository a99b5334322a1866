"""What the whole suite shares: no deadline of a single example, the Apache Fluss of FLASHLAKE_TEST_FLUSS, cheap passwords."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # it would measure how busy the machine is, and fail the first, cold example
settings.load_profile("suite")


LONG_FOLDERS = {"stream", "torture"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with processes to start come first, then the folders of long files: of the processes that share the files, none is left
    alone with a long one.
    """
    slow = {item.path for item in items if any(item.get_closest_marker(name) for name in ("dagster", "spark", "crash"))}
    items.sort(key=lambda item: 0 if item.path in slow else 1 if item.path.parent.name in LONG_FOLDERS else 2)


@pytest.fixture(scope="session")
def fluss_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster that lives as long as the run, or of the one that the variable names."""
    from storage_engine.fluss.cluster import FlussCluster

    asked = os.environ.get("FLASHLAKE_TEST_FLUSS", "")
    if asked.startswith("fluss://"):
        yield asked
        return
    cluster = FlussCluster(tmp_path_factory.mktemp("fluss"))
    try:
        yield cluster.start().url
    finally:
        cluster.stop()


@pytest.fixture(autouse=True)
def sources_of_functions() -> Iterator[None]:
    """A command line that a test runs in this process says where functions come from; the next test begins without."""
    yield
    functions = sys.modules.get("storage_engine.stream.functions.python_functions")
    if functions is not None:
        functions.configure(functions.FunctionSources())


@pytest.fixture(autouse=True, scope="session")
def cheap_passwords() -> None:
    """Password hashes of tests take little time; their parameters are beside them, so servers need no more."""
    from storage_engine.access import secrets

    secrets.SCRYPT_N, secrets.SCRYPT_P = 1 << 10, 1
