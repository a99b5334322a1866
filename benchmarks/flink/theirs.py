"""Theirs: a case in Flink over Fluss: the same events in Fluss's logs, the job submitted, its sink followed until it is still.

Flink does not say from outside what a change of the sink covers. The end is the sink's last change (nothing follows for SETTLE_S), and
the events behind the first change seen are taken as the share of the sink's changes seen with it.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

import storage_engine
from benchmarks.flink.cluster import FlinkOverFluss, FlinkRefused
from benchmarks.processes import Watch
from benchmarks.streams.case import Measured, StreamCase
from benchmarks.streams.cases import EVENTS, EVENTS_WATERMARK, USER_MAP
from benchmarks.streams.loading import load
from benchmarks.streams.queries import NEXMARK, WATERMARK
from storage_engine.errors import RetriableError

SETTLE_S = 5.0
POLL_S = 0.03
TIMEOUT_S = 600.0
LEADER_S = 20.0
_STATE_EVERY_S = 1.0
_TABLES = {"nexmark": NEXMARK.format(watermark=WATERMARK), "events": EVENTS.format(watermark=EVENTS_WATERMARK)}


@dataclass(frozen=True)
class _Followed:
    """perf_counter seconds of the first and the last change seen, and the changes in the sink's log at these times."""

    first_s: float
    last_s: float
    n_first: int
    n_last: int


class Theirs:
    """A started cluster with its events, for one case after another. Its JVMs stay warm from case to case."""

    def __init__(self, cluster: FlinkOverFluss, n_events: int, n_users: int) -> None:
        self._cluster, self._n_events, self._n_users = cluster, n_events, n_users
        self._loaded: set[str] = set()
        self._n_sinks = 0
        cluster.execute("CREATE DATABASE bench")

    def warm_up(self, case: StreamCase) -> None:
        """Let a job run that is not counted: the JVMs load and compile what all jobs share. A refusal is told when it is counted."""
        with suppress(FlinkRefused):
            self.run(case)

    def run(self, case: StreamCase) -> Measured:
        """Errors: FlinkRefused with Flink's words when it does not plan the statement or the job fails."""
        self._load(case)
        self._n_sinks += 1
        sink = f"bench.sink_{self._n_sinks}"
        self._create(f"CREATE TABLE {sink} {case.flink_sink or case.sink}")
        with storage_engine.connect(self._cluster.fluss.url) as store:
            store.backend.offsets(sink, "latest")  # the client learns where the table is before the clock starts
            with Watch(self._cluster.pids) as watch:
                began = time.perf_counter()
                select = case.flink_select or case.select
                (job,) = self._cluster.execute(f"INSERT INTO {sink} {case.columns} {select}", conf=case.flink_conf)
                assert job is not None, "an INSERT starts a job"
                try:
                    followed = self._followed(store, case.name, sink, job)
                    usage = watch.usage()
                finally:
                    self._cluster.cancel(job)
            n_sink = store.table(sink).count()
        self._cluster.execute(f"DROP TABLE {sink}")
        n_first = self._n_events * followed.n_first / followed.n_last
        return Measured(self._n_events, n_first, followed.first_s - began, followed.last_s - began, n_sink, usage)

    def _load(self, case: StreamCase) -> None:
        """The tables and rows that a case reads, unless an earlier one has brought them."""
        wanted = {"nexmark"} if case.is_nexmark else {"events"} | ({"user_map"} if "user_map" in case.select else set())
        for name in sorted(wanted - self._loaded):
            if name == "user_map":
                self._create(USER_MAP)
            else:
                self._create(*_TABLES[name].split(";"))
            with storage_engine.connect(self._cluster.fluss.url) as store:
                if name == "user_map":
                    store.table("bench.user_map").upsert(pa.table({"user_id": np.arange(self._n_users)}), ["user_id"])
                else:
                    load(store, self._n_events, self._n_users, is_nexmark=name == "nexmark")
            self._loaded.add(name)

    def _create(self, *statements: str) -> None:
        """Make tables and wait until each has a leader.

        Errors: FlinkRefused; StoreUnavailable when a table has none in time.
        """
        self._cluster.execute(*statements)
        for statement in statements:
            name = statement.split()[2]
            deadline = time.monotonic() + LEADER_S
            while True:
                try:
                    with storage_engine.connect(self._cluster.fluss.url) as store:  # a client that asked too early does not ask again
                        store.backend.offsets(name, "latest")
                    break
                except RetriableError:
                    if time.monotonic() > deadline:
                        raise
                time.sleep(POLL_S)

    def _followed(self, store: storage_engine.Store, name: str, sink: str, job: str) -> _Followed:
        first: tuple[float, int] | None = None
        last_s, n_last = 0.0, 0
        started = checked = time.perf_counter()
        while time.perf_counter() - started < TIMEOUT_S:
            n = sum(store.backend.offsets(sink, "latest").values())
            now = time.perf_counter()
            if n != n_last:
                last_s, n_last = now, n
                first = first or (now, n)
                print(f"\r  Flink, {name}: {n:,} changes", end="", file=sys.stderr)
            elif first is not None and now - last_s > SETTLE_S:
                print(file=sys.stderr)
                return _Followed(first[0], last_s, first[1], n_last)
            if now - checked > _STATE_EVERY_S:
                checked = now
                if self._cluster.state(job) not in ("CREATED", "INITIALIZING", "RUNNING"):
                    raise FlinkRefused(self._cluster.why_failed(job))
            time.sleep(POLL_S)
        raise FlinkRefused(f"no end within {TIMEOUT_S:.0f} s, {n_last:,} changes seen")
