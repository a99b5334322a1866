"""What the store answers, held to the model: rows, logs, offsets, lookups, counts, older versions, the journal. Raises Broken."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from storage_engine import TableBucket
from storage_engine.connection import wrap
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.engine.progress import COMMITTED_MS
from storage_engine.errors import OffsetOutOfRange
from storage_engine.log.frame import CHANGE_TYPE_NAMES, decode_batch
from storage_engine.schema.descriptor import Offsets
from tests.torture.model import KINDS, LOG_TTL_MS, MOVED, Model, ModelTable, same
from tests.torture.simulated_disk import Counts, SimulatedDisk

SLACK_MS = 60_000


class Broken(AssertionError):
    """The store broke a promise."""


@dataclass
class Tally:
    """What a campaign did."""

    seeds: int = 0
    commits: int = 0
    refused: int = 0
    reopens: int = 0
    flips: int = 0
    backups: int = 0
    compared: int = 0
    looks: int = 0
    cleanings: int = 0
    compactions: int = 0
    compacted_bytes: int = 0
    expired: int = 0
    outlived: int = 0
    disk: Counts = field(default_factory=Counts)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        for name in (counter.name for counter in fields(self) if counter.type == "int"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.disk.faults.update(other.disk.faults)
        self.disk.calls.update(other.disk.calls)
        self.outcomes.update(other.outcomes)


class Judged:
    """A store and the model that it is held to."""

    store: EmbeddedBackend
    model: Model
    disk: SimulatedDisk
    tally: Tally
    now_ms: int
    _chance: random.Random
    _is_lenient = False
    """Whether a move that let rows go may have been cut off."""
    _begin_faults = 0
    """How many faults there had been when the running operation began."""

    def require(self, is_so: bool, what: str) -> None:
        if not is_so:
            raise Broken(what)

    def compare(self) -> None:
        """Everything the store answers against the model."""
        self.tally.compared += 1
        store, model = self.store, self.model
        self._equal("version", store.version(), model.version)
        self._equal("tables", sorted(descriptor.name for descriptor in store.tables()), sorted(model.tables))
        progress = {owner: (item.offsets, _without_time(item.detail)) for owner, item in store.progress("").items()}
        self._equal("progress", progress, {owner: (item.offsets, item.detail) for owner, item in model.progress.items()})
        self._equal("objects", store.objects("view"), model.objects)
        for name in model.tables:
            self.compare_table(name)
        self._compare_journal()

    def compare_table(self, name: str) -> None:
        store, table = self.store, self.model.tables[name]
        descriptor = table.descriptor
        if descriptor.partition_keys:
            self._equal(f"partitions of {name}", list(store.partitions(name)), sorted(table.partitions))
        starts, ends = self._starts(name, table), store.offsets(name, "latest")
        expected = {bucket: len(log) for bucket, log in table.logs.items() if log}
        self._equal(f"offsets of {name}", {bucket: n for bucket, n in ends.items() if n}, expected)
        found = self.scan(name, starts, ends)
        for bucket, log in table.logs.items():
            seen = enumerate(log[starts.get(bucket, 0) :], starts.get(bucket, 0))
            changes = {offset: (kind, same(descriptor, row)) for offset, (kind, row) in seen if (kind, row) != MOVED}
            self._equal(f"log of {name} {bucket}", found.get(bucket, {}), changes)
        self._equal(f"late rows of {name}", store.late_rows(name), table.n_late)
        if not descriptor.has_primary_key:
            self._equal(f"count of {name}", store.count(name), sum(n - starts.get(bucket, 0) for bucket, n in expected.items()))
            return
        self._follow_row_ttl(name, table)
        rows = [same(descriptor, row) for row in table.rows]
        self._equal(f"count of {name}", store.count(name), len(rows))
        read = [same(descriptor, row) for row in store.read(name, None, None, None).to_pylist()]
        self._equal(f"rows of {name}", sorted(read, key=str), sorted(rows, key=str))
        self._compare_lookups(name, table)

    def _follow_row_ttl(self, name: str, table: ModelTable) -> None:
        """Let the rows go that the store let go: their time was over. They do not come back."""
        if "table.kv.ttl" not in table.descriptor.options:
            return
        n_before = len(table.outlived)
        found = {table.key_of(row): row for row in self.store.read(name, None, None, None).to_pylist()}
        early, back = table.follow(found, self.now_ms + SLACK_MS, is_lenient=self._is_lenient)
        self.require(not early, f"rows of {name} went before their time: {_short(early)}")
        self.require(not back, f"rows of {name} that had outlived their time are back: {_short(back)}")
        self.tally.outlived += max(0, len(table.outlived) - n_before)

    def _starts(self, name: str, table: ModelTable) -> dict[TableBucket, int]:
        """Where the log of each bucket begins for its readers. What is gone was old enough."""
        starts = self.store.offsets(name, "earliest")
        for bucket, start in starts.items():
            young = [at for _, at in table.stamps.get(bucket, [])[:start] if at > self.now_ms - LOG_TTL_MS + SLACK_MS]
            self.require(not young, f"rows of {name} {bucket} below {start} have expired, {len(young)} of them too early")
        self.tally.expired += sum(1 for start in starts.values() if start)
        return starts

    def look(self, name: str, stages: Sequence[Model]) -> None:
        """A lookup of all keys while commits are on their way finds what the newest says; after a fault, perhaps what one before says."""
        if name not in stages[-1].tables or not KINDS[name].has_primary_key:
            return
        keys = sorted({tuple(row[key] for key in KINDS[name].primary_key) for stage in stages for row in stage.tables[name].rows}, key=str)
        if not keys:
            return
        asked = pa.Table.from_pylist([dict(zip(KINDS[name].primary_key, key, strict=True)) for key in keys], schema=KINDS[name].key_schema)
        rows = self.store.lookup(name, asked, None, insert_if_not_exists=False).to_pylist()
        self.tally.looks += 1
        descriptor = stages[-1].tables[name].descriptor
        names = descriptor.primary_key
        found = {key: same(descriptor, row) for key, row in zip(keys, rows, strict=True) if row["_found"]}
        is_sound = sum(self.disk.counts.faults.values()) == self._begin_faults and not self.disk.is_failing
        fitting = stages[-1:] if is_sound else stages
        expected = [{tuple(row[key] for key in names): same(descriptor, row) for row in stage.tables[name].rows} for stage in fitting]
        self.require(found in expected, f"a lookup in {name} beside commits on their way finds {_short(found)}, not {_short(expected)}")

    def _compare_lookups(self, name: str, table: ModelTable) -> None:
        descriptor = table.descriptor
        keys = [{key: row[key] for key in descriptor.primary_key} for row in table.rows]
        absent = {key: {"k1": 77, "k2": "none", "id": 77, "ds": "d1"}[key] for key in descriptor.primary_key}
        asked = [*keys, absent]
        keyed = pa.Table.from_pylist(asked, schema=descriptor.key_schema)
        found = self.store.lookup(name, keyed, None, insert_if_not_exists=False).to_pylist()
        self._equal(f"found in {name}", [row["_found"] for row in found], [True] * len(keys) + [False])
        rows = [same(descriptor, row) for row in found[: len(keys)]]
        points = wrap(self.store).table(name)
        for key in self._chance.sample(asked, min(2, len(asked))):
            row = points.lookup_one(key)
            expected = next((row for row in table.rows if all(row[name] == value for name, value in key.items())), None)
            self._equal(f"the row of one key in {name}", row and same(descriptor, row), expected and same(descriptor, expected))
        self._equal(f"lookup in {name}", rows, [same(descriptor, row) for row in table.rows])
        if descriptor.is_prefix_lookup_possible and descriptor.bucket_keys == ("k1",):
            schema = pa.schema([descriptor.key_schema.field("k1")])
            under = self.store.prefix_lookup(name, pa.table({"k1": pa.array([0, 1, 2], pa.int32())}, schema=schema), None, None)
            got = sorted((row["k1"], row["k2"]) for row in under.to_pylist())
            self._equal(f"prefixes in {name}", got, sorted((row["k1"], row["k2"]) for row in table.rows))

    def scan(self, name: str, starts: Offsets, ends: Offsets) -> dict[TableBucket, dict[int, tuple[str, Any]]]:
        """Every row of a table's log with its change type, by offset, in order."""
        descriptor = self.model.tables[name].descriptor
        found: dict[TableBucket, dict[int, tuple[str, Any]]] = {}
        for frame in self.store.fetch(name, {bucket: (starts[bucket], end) for bucket, end in ends.items() if end}, None):
            rows = found.setdefault(frame.bucket, {})
            self.require(frame.base_offset > max(rows, default=-1), f"offset {frame.base_offset} of {name} {frame.bucket} comes late")
            schema = pa.schema([descriptor.arrow_schema.field(column) for column in frame.columns])
            batch = decode_batch(frame.message, schema)
            codes = np.frombuffer(frame.change_types, np.uint8) if frame.change_types else np.zeros(batch.num_rows, np.uint8)
            kinds = [CHANGE_TYPE_NAMES[code] for code in codes[: batch.num_rows]]
            changes = ((kind, same(descriptor, row)) for kind, row in zip(kinds, batch.to_pylist(), strict=True))
            rows.update(enumerate(changes, frame.base_offset))
        return found

    def compare_older_version(self, name: str) -> None:
        """The rows at a version some commits ago are what the changelog's rows below it leave."""
        table = self.model.tables[name]
        if not table.descriptor.has_primary_key or table.descriptor.is_wal:
            return
        version = max(0, self.store.version() - self._chance.randrange(4))
        has_expired = any(self._starts(name, table).values())
        try:
            ends = self.store.offsets(name, "latest", version)
            read = self.store.read(name, None, None, version).to_pylist()
        except OffsetOutOfRange:
            self.require(has_expired, f"rows of {name} at version {version} are refused, and nothing of it has expired")
            return
        rows: dict[Any, Any] = {}
        changes = [
            (*stamp, change)
            for bucket, end in ends.items()
            for stamp, change in zip(table.stamps.get(bucket, [])[:end], table.logs.get(bucket, []), strict=False)
            if change != MOVED
        ]
        for _, at, (kind, row) in sorted(changes, key=itemgetter(0)):  # a key's changes lie in two buckets once its row has moved
            rows.pop(table.key_of(row), None)
            if kind in ("+I", "+U"):
                rows[table.key_of(row)] = at, row
        found = {table.key_of(row): same(table.descriptor, row) for row in read}
        self.require(len(found) == len(read), f"a key of {name} has two rows at version {version}")
        expected = {
            key: same(table.descriptor, row)
            for key, (at, row) in rows.items()
            if key in found or not table.has_outlived(row, at, self.now_ms + SLACK_MS)
        }
        self._equal(f"rows of {name} at version {version}", sorted(found.items(), key=str), sorted(expected.items(), key=str))

    def _compare_journal(self) -> None:
        """The journal's ranges of all tables add up to their logs."""
        left: dict[tuple[str, TableBucket], list[int]] = {}
        for name, table in self.model.tables.items():
            starts = self._starts(name, table)
            for bucket, log in table.logs.items():
                left[name, bucket] = [at for at in range(starts.get(bucket, 0), len(log)) if log[at] != MOVED]
        listed: dict[tuple[str, TableBucket], list[int]] = {key: [] for key in left}
        for commit in self.store.commits(0, 1_000_000):
            for name, ranges in commit.ranges.items():
                for bucket, (start, stop) in ranges.items():
                    listed[name, bucket] += range(start, stop)
        self._equal("journal", listed, left)

    def _equal(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise Broken(f"{what}: the store has {_short(found)}, it must have {_short(expected)}")


def _without_time(detail: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the store adds for a consumer: when it committed."""
    return {name: value for name, value in detail.items() if name != COMMITTED_MS}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 1500 else f"{text[:700]} ... {text[-700:]}"
