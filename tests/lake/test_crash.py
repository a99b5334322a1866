"""Killed anywhere, the tierer leaves a lake that equals the store at a recorded version, and goes on from there without a row twice."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import storage_engine
from storage_engine.api import CommitRequest, CommitResult
from storage_engine.client.store import Store
from storage_engine.connection import wrap
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.lake import Limits, Tierer, find_snapshot, open_union, table_path, union_read
from storage_engine.lake.columns import quoted_list
from storage_engine.schema.descriptor import Column, TableDescriptor
from tests.waiting import await_true, let_pass

N_KILLS = int(os.environ.get("FLASHLAKE_CAMPAIGN", "8"))
TIERED = {"table.datalake.enabled": "true", "table.datalake.freshness": "1s"}
LOG = TableDescriptor(
    name="shop.visits",
    columns=(Column("user_id", "BIGINT"), Column("day", "STRING", nullable=False)),
    partition_keys=("day",),
    options=TIERED,
)
KEYED = TableDescriptor(
    name="shop.stock",
    columns=(Column("item", "BIGINT", nullable=False), Column("day", "STRING", nullable=False), Column("n", "BIGINT")),
    primary_key=("item", "day"),
    partition_keys=("day",),
    n_buckets=2,
    bucket_keys=("item",),
    options=TIERED,
)


def rows_at(store: Store, name: str, version: int) -> list[tuple]:
    table = store.table(name)
    rows = table.read(at=version) if table.descriptor.has_primary_key else table.scan(stop=table.offsets(at_version=version)).read_all()
    return sorted(tuple(row.values()) for row in rows.to_pylist())


@pytest.fixture
def assert_lake_is_right(tmp_path, duck, lake_rows) -> Callable[[Store], None]:
    """The lake equals the store at the recorded version, offsets are there once, and the union equals the store now."""

    def check(store: Store) -> None:
        for name in ("shop.visits", "shop.stock"):
            descriptor = store.describe(name)
            columns = quoted_list(descriptor.column_names)
            snapshot = find_snapshot(store, tmp_path / "lake", descriptor)
            if snapshot is not None:
                in_lake = lake_rows(table_path(tmp_path / "lake", name), columns, snapshot.delta_version)
                assert in_lake == rows_at(store, name, snapshot.version), f"{name} at store version {snapshot.version}"
            union = open_union(store, tmp_path / "lake", name)
            union.register(duck, "answer")
            assert duck.execute("SELECT * FROM answer ORDER BY ALL").fetchall() == rows_at(store, name, union.version)

    return check


def prepare(store: Store) -> None:
    store.create_table(LOG)
    store.create_table(KEYED)


@pytest.mark.crash
def test_a_tierer_killed_at_random_moments_loses_nothing_and_writes_nothing_twice(tmp_path, assert_lake_is_right, lake_rows):
    pick = random.Random(N_KILLS)
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as store:
        prepare(store)
    versions = [0]
    for kill in range(N_KILLS):
        run_and_kill(tmp_path, seed=kill, after_s=pick.uniform(0, 0.6))
        with storage_engine.connect(f"file://{tmp_path / 'store'}") as store:
            assert_lake_is_right(store)
            snapshot = find_snapshot(store, tmp_path / "lake", store.describe("shop.stock"))
            assert snapshot is not None
            versions.append(snapshot.version)

    assert versions == sorted(set(versions)), "every run brought the lake forward"
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as store:
        Tierer(store, tmp_path / "lake").run_once(force=True)
        assert_lake_is_right(store)
        assert find_snapshot(store, tmp_path / "lake", store.describe("shop.visits")).offsets == store.table("shop.visits").offsets()
    places = lake_rows(table_path(tmp_path / "lake", "shop.visits"), "day, __bucket, __offset")
    assert len(places) == len(set(places))


def run_and_kill(tmp_path: Path, seed: int, after_s: float) -> None:
    command = [
        sys.executable,
        str(Path(__file__).with_name("tiering_process.py")),
        str(tmp_path / "store"),
        str(tmp_path / "lake"),
        str(seed),
    ]
    with (
        (tmp_path / "errors.txt").open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", (tmp_path / "errors.txt").read_text()
            let_pass(after_s)  # the moment of the kill is the input of this test
            assert process.poll() is None, (tmp_path / "errors.txt").read_text()
        finally:
            process.kill()


@pytest.mark.crash
def test_the_tiering_process_killed_beside_a_running_server_goes_on_when_it_is_started_again(tmp_path, lake_rows):
    pick = random.Random(1)
    server = [sys.executable, "-m", "storage_engine.server", "--dir", str(tmp_path / "store"), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as serving:
        try:
            url = re.search(r"flashlake://\S+", serving.stdout.readline())[0]
            command = [sys.executable, "-m", "storage_engine.lake", "--store", url, "--lake", str(tmp_path / "lake")]
            with storage_engine.connect(url) as store:
                prepare(store)
                for number in range(max(N_KILLS // 3, 2)):
                    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tiering:
                        assert tiering.stdout.readline().startswith("tiering ")
                        end = time.monotonic() + pick.uniform(0.3, 1.5)
                        while time.monotonic() < end:
                            store.table("shop.visits").append({"user_id": [number] * 5, "day": ["2026-01-01"] * 5})
                            store.table("shop.stock").upsert(
                                {"item": pick.sample(range(50), 9), "day": ["2026-01-01"] * 9, "n": [number] * 9}
                            )
                        tiering.kill()
                assert subprocess.run([*command, "--once"]).returncode == 0
                for name in ("shop.visits", "shop.stock"):
                    columns = quoted_list(store.describe(name).column_names)
                    assert lake_rows(table_path(tmp_path / "lake", name), columns) == rows_at(store, name, store.version())
        finally:
            serving.terminate()


@pytest.mark.crash
def test_a_tierer_killed_while_it_takes_current_rows_leaves_all_of_them_or_none(tmp_path, duck, lake_rows):
    """The changelog has expired: a round from the current rows is the only way into the lake."""
    pick = random.Random(2)
    long_ago = time.time_ns() // 1_000_000 - 30 * 24 * 3_600_000
    n_rows = 300_000
    with wrap(EmbeddedBackend.open(tmp_path / "store", maintenance=False, now_ms=lambda: long_ago)) as store:
        store.create_table(replace(KEYED, options={}))
        store.table("shop.stock").upsert({"item": list(range(n_rows)), "day": ["2026-01-01"] * n_rows, "n": [0] * n_rows})
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as store:
        store.table("shop.stock").compact()
        assert sum(store.table("shop.stock").offsets("earliest").values()) == n_rows
        store.execute("ALTER TABLE shop.stock SET ('table.datalake.enabled' = 'true')")
    for kill in range(max(N_KILLS // 2, 2)):
        lake = tmp_path / f"lake{kill}"
        path = table_path(lake, "shop.stock")
        command = [sys.executable, "-m", "storage_engine.lake", "--store", f"file://{tmp_path / 'store'}", "--lake", str(lake), "--once"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            await_true(lambda p=path, q=process: any(p.rglob("*.parquet")) or q.poll() is not None, "files of the round", timeout_s=60)
            let_pass(pick.uniform(0, 0.3))  # the moment of the kill is the input of this test
            process.kill()
        with storage_engine.connect(f"file://{tmp_path / 'store'}") as store:
            snapshot = find_snapshot(store, lake, store.describe("shop.stock"))
            if snapshot is not None:
                assert lake_rows(path, "count(*), count(DISTINCT item)", snapshot.delta_version) == [(n_rows, n_rows)]
            assert union_read(duck, store, lake, "shop.stock", ["item"]).num_rows == n_rows
        assert subprocess.run(command, stderr=subprocess.PIPE).returncode == 0
        assert lake_rows(path, "count(*), count(DISTINCT item), max(n)") == [(n_rows, n_rows, 0)]
        with storage_engine.connect(f"file://{tmp_path / 'store'}") as store, Tierer(store, lake) as tierer:
            tierer.forget("shop.stock")


class DeathError(BaseException):
    """The process ends here."""


class DyingBackend:
    """A backend whose process dies at its n-th commit: before it is written, or after it but before the caller knows."""

    def __init__(self, backend: Any, nth: int, *, is_written: bool) -> None:
        self._backend, self._left, self._is_written = backend, nth, is_written
        self.has_died = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def commit(self, request: CommitRequest) -> CommitResult:
        if self.has_died:
            raise DeathError
        self._left -= 1
        if self._left == 0:
            self.has_died = True
            if self._is_written:
                self._backend.commit(request)
            raise DeathError
        return self._backend.commit(request)


@pytest.mark.parametrize("is_written", [True, False], ids=["commit written", "commit lost"])
def test_a_tierer_that_dies_at_any_commit_to_the_store_leaves_a_lake_that_is_right(tmp_path, assert_lake_is_right, is_written):
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as store:
        prepare(store)
        for nth in itertools.count(1):
            store.table("shop.visits").append({"user_id": [nth] * 3, "day": ["2026-01-01", "2026-01-02", f"2026-02-{nth % 28 + 1:02d}"]})
            store.table("shop.stock").upsert({"item": [nth, nth + 1], "day": ["2026-01-01"] * 2, "n": [nth, nth]})
            dying = DyingBackend(store.backend, nth, is_written=is_written)
            try:
                Tierer(wrap(dying), tmp_path / "lake", Limits(compact_commits=2)).run_once(force=True)
            except DeathError:
                assert dying.has_died
            assert_lake_is_right(store)
            if not dying.has_died:
                break
    assert nth > 6, "two tables, each with a claim, an intent and a done"
