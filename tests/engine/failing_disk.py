"""Failing disk: a store over a simulated disk that fails when it is told to."""

from __future__ import annotations

import errno
from pathlib import Path

from storage_engine import Store
from storage_engine.connection import wrap
from storage_engine.engine.embedded import EmbeddedBackend, SyncMode
from storage_engine.log.disk import Disk
from tests.torture.simulated_disk import Fault, SimulatedDisk

STORE = Path("/store")
DDL = """
CREATE TABLE s.items (id BIGINT, note STRING, PRIMARY KEY (id) NOT ENFORCED);
CREATE TABLE s.log (id BIGINT);
CREATE TABLE s.days (id BIGINT, ds STRING, PRIMARY KEY (id, ds) NOT ENFORCED) PARTITIONED BY (ds);
CREATE TABLE s.ids (name STRING, no BIGINT, PRIMARY KEY (name) NOT ENFORCED) WITH ('auto-increment.fields' = 'no');
"""
FOR_EVER = 1 << 40


def opened(disk: Disk, sync: SyncMode = "commit", directory: Path = STORE) -> Store:
    return wrap(EmbeddedBackend.open(directory, disk=disk, sync=sync, maintenance=False))


def put(store: Store, *ids: int) -> None:
    store.table("s.items").upsert({"id": list(ids), "note": [f"note {i}" for i in ids]})


def ids_of(store: Store) -> list[int]:
    return sorted(store.table("s.items").read()["id"].to_pylist())


def fail(disk: SimulatedDisk, operation: str, times: int = 1, code: int = errno.EIO) -> None:
    disk.plan(Fault("error", 0, frozenset({operation}), code, times))
