"""Contract: what a backend does not declare is refused by the feature's name and the backend's, and nothing is done."""

from __future__ import annotations

import pyarrow as pa
import pytest

import storage_engine
from storage_engine import WriteOp
from storage_engine.api import CAPABILITIES
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.errors import UnsupportedByBackend
from storage_engine.server import FlightServer

TABLES = """
    CREATE TABLE a.log (x BIGINT);
    CREATE TABLE a.pk (s BIGINT NOT NULL, i BIGINT NOT NULL, v BIGINT, PRIMARY KEY (s, i) NOT ENFORCED) WITH ('bucket.key' = 's')
"""
ONE = pa.table({"x": [1]})
KEY = {"s": [1], "i": [1]}
ROW = {**KEY, "v": [1]}


class Limited(EmbeddedBackend):
    """A backend that keeps logs and nothing else."""

    capabilities = frozenset({"append", "scan"})


@pytest.fixture
def limited(tmp_path):
    backend = Limited.open(tmp_path / "store")
    server = FlightServer(backend)
    with storage_engine.connect(f"flashlake://127.0.0.1:{server.port}") as store:
        store.execute(TABLES)
        yield store
    backend.close()


def test_what_is_declared_works(limited):
    limited.table("a.log").append({"x": [1]})

    assert limited.table("a.log").scan().read_all().to_pydict() == {"x": [1]}


@pytest.mark.parametrize(
    ("feature", "call"),
    [
        ("upsert", lambda store: store.table("a.pk").upsert(ROW)),
        ("delete", lambda store: store.table("a.pk").delete(KEY)),
        ("lookup", lambda store: store.table("a.pk").lookup(KEY)),
        ("prefix_lookup", lambda store: store.table("a.pk").prefix_lookup({"s": [1]})),
        ("read", lambda store: store.table("a.pk").read()),
        ("alter_table", lambda store: store.execute("ALTER TABLE a.log ADD y STRING")),
        ("transactions", lambda store: store.commit([WriteOp("a.log", "append", ONE), WriteOp("a.other", "append", ONE)])),
    ],
)
def test_what_is_not_declared_is_refused_by_its_name_and_nothing_is_done(limited, feature, call):
    version = limited.version()

    with pytest.raises(UnsupportedByBackend, match=rf"lacks {feature}\b.*{limited.url}.*append, scan"):
        call(limited)

    assert limited.version() == version


def test_a_backend_declares_only_features_that_have_a_name(store):
    assert store.capabilities <= CAPABILITIES
