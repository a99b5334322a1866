"""Random programs of writes, deletes, cleaning, restarts and the passing of time: what readers see is what a plain model says."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from storage_engine import TableBucket
from storage_engine.client.store import Store
from storage_engine.engine.checkpointer import CheckpointPolicy
from storage_engine.engine.fsck import check_store
from storage_engine.errors import OffsetOutOfRange
from tests.engine.cleaning import HOUR_MS, NO_COPIES, Clock, backend_of, opened, small_files
from tests.engine.test_key_snapshots import crash

DDL = """
CREATE TABLE m.rows (id BIGINT, a BIGINT, b STRING, PRIMARY KEY (id) NOT ENFORCED) WITH ('table.log.ttl' = '1h');
CREATE TABLE m.blind (id BIGINT, a BIGINT, PRIMARY KEY (id) NOT ENFORCED)
    WITH ('table.log.ttl' = '1h', 'table.changelog.image' = 'wal');
CREATE TABLE m.sums (id BIGINT, a BIGINT, PRIMARY KEY (id) NOT ENFORCED)
    WITH ('table.log.ttl' = '1h', 'table.merge-engine' = 'aggregation', 'fields.a.agg' = 'sum');
CREATE TABLE m.log (id BIGINT, a BIGINT) WITH ('table.log.ttl' = '1h');
"""
ONE = TableBucket("", 0)
KEYS = st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True)


class CleaningMachine(RuleBasedStateMachine):
    """The model: per primary-key table the rows at each version; the log as a list; changelogs as they were scanned when written."""

    def __init__(self) -> None:
        super().__init__()
        self.files = small_files(6000)
        self.files.__enter__()
        self.root = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.number = 0
        self.rows: dict[str, dict[int, tuple[Any, ...]]] = {"rows": {}, "blind": {}, "sums": {}}
        self.at: dict[int, dict[str, dict[int, tuple[Any, ...]]]] = {}
        self.ends: dict[int, dict[str, int]] = {}
        self.seen: dict[str, list[dict[str, Any]]] = {"rows": [], "blind": [], "sums": [], "log": []}
        self.ranges: dict[int, Any] = {}
        self.store: Store = opened(self.root / "s", self.clock)

    @initialize()
    def create(self) -> None:
        self.store.execute(DDL)

    def _wrote(self) -> None:
        """Remember what readers see now: it must not change, as long as it can be read."""
        version = self.store.version()
        self.at[version] = {name: dict(rows) for name, rows in self.rows.items()}
        for name, seen in self.seen.items():
            start = len(seen)
            news = self.store.table(f"m.{name}").scan(start={ONE: start}, metadata=True).read_all().to_pylist()
            seen.extend(news)
            self.ends.setdefault(version, {})[name] = len(seen)
        self.ranges |= {info.version: info for info in self.store.backend.commits(version - 1, 10)}

    @rule(keys=KEYS)
    def upsert(self, keys: list[int]) -> None:
        self.number += 1
        rows = {"id": keys, "a": [self.number] * len(keys), "b": [f"text {self.number} {key}" for key in keys]}
        self.store.table("m.rows").upsert(rows)
        self.rows["rows"] |= {key: (self.number, f"text {self.number} {key}") for key in keys}
        self._wrote()

    @rule(keys=KEYS)
    def update_partly(self, keys: list[int]) -> None:
        self.number += 1
        self.store.table("m.rows").upsert({"id": keys, "a": [self.number] * len(keys)}, columns=["id", "a"])
        self.rows["rows"] |= {key: (self.number, self.rows["rows"].get(key, (0, None))[1]) for key in keys}
        self._wrote()

    @rule(keys=KEYS, name=st.sampled_from(["rows", "blind"]))
    def delete(self, keys: list[int], name: str) -> None:
        self.store.table(f"m.{name}").delete({"id": keys})
        for key in keys:
            self.rows[name].pop(key, None)
        self._wrote()

    @rule(keys=KEYS)
    def overwrite_blindly(self, keys: list[int]) -> None:
        self.number += 1
        self.store.table("m.blind").upsert({"id": keys, "a": [self.number] * len(keys)})
        self.rows["blind"] |= {key: (self.number,) for key in keys}
        self._wrote()

    @rule(keys=KEYS)
    def add(self, keys: list[int]) -> None:
        self.store.table("m.sums").upsert({"id": keys, "a": [1] * len(keys)})
        self.rows["sums"] |= {key: (self.rows["sums"].get(key, (0,))[0] + 1,) for key in keys}
        self._wrote()

    @rule(keys=KEYS)
    def append(self, keys: list[int]) -> None:
        self.store.table("m.log").append({"id": keys, "a": [1] * len(keys)})
        self._wrote()

    @rule(minutes=st.sampled_from([1, 10, 40, 90]))
    def wait(self, minutes: int) -> None:
        self.clock.pass_ms(minutes * HOUR_MS // 60)

    @rule()
    def clean(self) -> None:
        backend_of(self.store).clean()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        assert check_store(self.root / "s", keys=True).findings == []
        self.store = opened(self.root / "s", self.clock, checkpoints=CheckpointPolicy(rows=20, rows_at_close=10))

    @rule(derived=st.sampled_from([(), ("CHECKPOINT",), ("CHECKPOINT", "index")]))
    def kill(self, derived: tuple[str, ...]) -> None:
        crash(self.store)
        for name in derived:
            path = self.root / "s" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        assert check_store(self.root / "s", keys=True).damages == []
        self.store = opened(self.root / "s", self.clock, checkpoints=NO_COPIES)

    @precondition(lambda self: self.at)
    @rule(back=st.integers(0, 20), name=st.sampled_from(["rows", "blind", "sums"]))
    def read_at_a_version(self, back: int, name: str) -> None:
        version = sorted(self.at)[-1 - back % len(self.at)]
        table = self.store.table(f"m.{name}")
        if version < self._oldest(name):
            with pytest.raises(OffsetOutOfRange, match="The oldest version that can be read"):
                table.read(at=version)
            return
        found = {row["id"]: tuple(row.values())[1:] for row in table.read(at=version).to_pylist()}
        assert found == self.at[version][name]
        assert table.offsets(at_version=version).get(ONE, 0) == self.ends[version][name]

    def _oldest(self, name: str) -> int:
        """The oldest version that can be read: the one with which the log's end reached what is its start now."""
        start = self.store.table(f"m.{name}").offsets("earliest").get(ONE, 0)
        return min(version for version, ends in self.ends.items() if ends[name] >= start)

    @invariant()
    def current_rows_are_the_models(self) -> None:
        for name, rows in self.rows.items():
            table = self.store.table(f"m.{name}")
            assert {row["id"]: tuple(row.values())[1:] for row in table.read().to_pylist()} == rows
            assert {row["id"]: tuple(row.values())[1:] for row in table.lookup({"id": list(range(31))}).to_pylist()} == rows
            assert table.count() == len(rows)

    @invariant()
    def logs_are_what_they_were_from_their_start_on(self) -> None:
        for name, seen in self.seen.items():
            table = self.store.table(f"m.{name}")
            start = table.offsets("earliest").get(ONE, 0)
            assert table.offsets("latest").get(ONE, 0) == len(seen)
            assert table.scan(metadata=True).read_all().to_pylist() == seen[start:]

    @invariant()
    def the_journal_tells_what_it_told(self) -> None:
        starts = {f"m.{name}": self.store.table(f"m.{name}").offsets("earliest").get(ONE, 0) for name in self.seen}
        for info in self.store.backend.commits(0, 10_000):
            before = self.ranges[info.version]
            assert info.timestamp_ms == before.timestamp_ms
            for table, by_bucket in info.ranges.items():
                assert by_bucket == before.ranges[table]
                assert by_bucket[ONE][0] >= starts[table]

    def teardown(self) -> None:
        self.store.close()
        self.files.__exit__(None, None, None)
        shutil.rmtree(self.root)


CleaningMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("FLASHLAKE_CLEANING_PROGRAMS", "5")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # programs of real files shrink too slowly to wait for
)
TestCleaning = CleaningMachine.TestCase
