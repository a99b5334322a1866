"""A bucket, under any sequence of operations, transactions, roll-backs and restarts, equals the naive row-by-row table."""

from __future__ import annotations

import copy
import itertools
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from storage_engine.kv import AutoIncrement, KvBucket, SpilledIndex, SpilledPrefixes, follow, key_index
from storage_engine.schema.keys import hash64
from tests.kv.model import NaiveTable, RowLog, bitmap, bitmap64, changes_of, comparable, money, table

VALUES = {
    "k1": st.integers(0, 2),
    "k2": st.sampled_from(["", "a", "ab", "é"]),
    "BIGINT": st.integers(-3, 3),
    "INT": st.integers(-3, 3),
    "STRING": st.sampled_from(["", "x", "y", "yy"]),
    "DECIMAL(12, 2)": st.integers(-500, 500).map(money),
    "DOUBLE": st.sampled_from([0.0, 0.5, -1.25, 8.0]),
    "BOOLEAN": st.booleans(),
    "DATE": st.integers(1, 5).map(lambda day: date(2017, 1, day)),
    "TIMESTAMP_LTZ(3)": st.integers(1, 5).map(lambda hour: datetime(2017, 1, 1, hour, tzinfo=UTC)),
    # values by column: products that stay within their types however many rows come
    "factor": st.sampled_from([-1, 1, 1, -1, 0]),
    "scale": st.sampled_from([-100, 100, 99, 33, 50, -67]).map(money),
    "gain": st.sampled_from([1.0, -1.0, 0.5]),
    "rb64": st.frozensets(st.integers(0, 8) | st.just(2**63 + 1), max_size=4).map(lambda members: bitmap64(*members)),
    "BYTES": st.frozensets(st.integers(0, 8) | st.just(2**32 - 1), max_size=4).map(lambda members: bitmap(*members)),
}


WAL = {"table.changelog.image": "wal"}


PATHS = itertools.count()


@pytest.fixture(autouse=True)
def merges_after_few_keys(monkeypatch):
    monkeypatch.setattr(key_index, "_TABLE_KEYS_MIN", 3)
    monkeypatch.setattr(key_index, "_SLICE_KEYS_MIN", 2)
    monkeypatch.setattr(key_index, "_SLICE_KEYS_PER_PUT", 1)


def weak_hash(keys: pa.Array) -> np.ndarray:
    """Two values for all keys, one of them the index's mark for an empty slot."""
    return hash64(keys) & np.uint64(1)


class BucketMachine(RuleBasedStateMachine):
    """Operations between begin and end of a transaction are staged; the model follows on a copy that end() keeps or drops."""

    engine = "last_row"
    options: dict[str, str] = {}  # noqa: RUF012 - replaced by subclasses
    hash_keys = staticmethod(hash64)
    folder: Path | None = None

    @initialize()
    def create(self):
        self.descriptor = table(self.engine, **self.options)
        self.log = RowLog(self.descriptor.arrow_schema)
        self.committed = NaiveTable(self.descriptor)
        self.model = copy.deepcopy(self.committed)
        self.ids = AutoIncrement(self.descriptor) if self.descriptor.auto_increment_column else None
        self.bucket = self.fresh_bucket()
        self.committed_end = 0
        self.moving: tuple[SpilledIndex, SpilledPrefixes] | None = None
        self.on_disk: list[KvBucket] = []

    def fresh_bucket(self) -> KvBucket:
        return KvBucket(self.descriptor, self.log.fetch, ids=self.ids, hash_keys=self.hash_keys)

    def draw_rows(self, data: st.DataObject) -> tuple[pa.Table, list[dict]]:
        rows = data.draw(
            st.lists(
                st.fixed_dictionaries(
                    {
                        column.name: st.none() if column.name == self.descriptor.auto_increment_column
                        else VALUES[column.name] if column.name in self.descriptor.primary_key
                        else st.none() | VALUES.get(column.name, VALUES.get(column.type))
                        for column in self.descriptor.columns
                    }
                ),
                max_size=12,
            )
        )  # fmt: skip
        return pa.Table.from_pylist(rows, schema=self.descriptor.arrow_schema), rows

    def draw_targets(self, data: st.DataObject) -> list[str]:
        others = [name for name in self.descriptor.column_names if name not in self.descriptor.primary_key]
        return [*self.descriptor.primary_key, *data.draw(st.lists(st.sampled_from(others), unique=True))]

    def follow(self, change, expected):
        is_wal = self.descriptor.is_wal
        got = changes_of(change, ("k1", "k2"), is_wal=is_wal)
        if is_wal and self.hash_keys is not hash64:  # a key whose hash is taken begins with +I
            got = {key: [("+U" if kind == "+I" else kind, row) for kind, row in changes] for key, changes in got.items()}
            expected = {key: [("+U" if kind == "+I" else kind, row) for kind, row in changes] for key, changes in expected.items()}
        assert got == {key: [(kind, comparable(row)) for kind, row in changes] for key, changes in expected.items()}
        self.bucket.stage(change, self.log.append(change))

    @rule(data=st.data())
    def upsert(self, data):
        rows, plain = self.draw_rows(data)
        self.follow(self.bucket.upsert(rows), self.model.upsert(plain, None))

    @precondition(lambda self: self.engine not in ("first_row", "versioned"))
    @rule(data=st.data())
    def partial_upsert(self, data):
        rows, plain = self.draw_rows(data)
        targets = [name for name in self.draw_targets(data) if name != self.descriptor.auto_increment_column]
        self.follow(self.bucket.upsert(rows.select(targets), targets), self.model.upsert(plain, targets))

    @precondition(lambda self: self.engine == "aggregation")
    @rule(data=st.data())
    def retract(self, data):
        rows, plain = self.draw_rows(data)
        summed = [n for n in self.descriptor.column_names if self.descriptor.aggregate_function(n) in ("sum", "count")]
        kept = {"k1", "k2", *summed}
        plain = [{name: value if name in kept else None for name, value in row.items()} for row in plain]
        rows = pa.Table.from_pylist(plain, schema=rows.schema)
        if data.draw(st.booleans()):
            summed = data.draw(st.lists(st.sampled_from(summed), unique=True))
            targets = ["k1", "k2", *summed]
            plain = [{name: value if name in targets else None for name, value in row.items()} for row in plain]
            self.follow(self.bucket.retract(rows.select(targets), targets), self.model.retract(plain))
        else:
            self.follow(self.bucket.retract(rows), self.model.retract(plain))

    @rule(data=st.data())
    def delete(self, data):
        rows, plain = self.draw_rows(data)
        self.follow(self.bucket.delete(rows.select(["k1", "k2"])), self.model.delete(plain, None))

    @rule(data=st.data())
    def partial_delete(self, data):
        rows, plain = self.draw_rows(data)
        targets = [name for name in self.draw_targets(data) if name != self.descriptor.auto_increment_column]  # an id stays
        self.follow(self.bucket.delete(rows.select(["k1", "k2"]), targets), self.model.delete(plain, targets))

    @rule()
    def commit(self):
        self.bucket.commit()
        if self.ids is not None:
            self.ids.commit()
        self.committed, self.committed_end = copy.deepcopy(self.model), self.log.end_offset

    @rule()
    def fail(self):
        self.bucket.rollback()
        if self.ids is not None:
            self.ids.rollback()
        self.log.cut(self.committed_end)
        self.model = copy.deepcopy(self.committed)

    @rule(replay_from=st.integers(0, 10))
    def restart(self, replay_from):
        """Recover from a snapshot taken after some frames, and the changelog behind it."""
        self.fail()
        frames = self.log.frames
        early = self.bucket if self.bucket.spilled_bytes is not None and replay_from >= len(frames) else self.fresh_bucket()
        if early is not self.bucket:
            early.rebuild(frames[:replay_from])
        self.bucket = self.fresh_bucket()
        self.bucket.restore(early.snapshot())
        self.bucket.rebuild(frames[replay_from:])
        self.give_up_move()

    @precondition(lambda self: self.folder is not None and self.moving is None and self.bucket.spilled_bytes is None)
    @rule()
    def begin_to_move_the_indexes_to_disk(self):
        self.fail()
        assert self.folder is not None, "the rule's condition"
        path = self.folder / str(next(PATHS))
        copy = self.bucket.begin_move()
        self.moving = SpilledIndex(path / "keys"), SpilledPrefixes(path / "prefixes")
        self.moving[0].load(copy.keys)
        for pairs in copy.prefixes:
            self.moving[1].add(pairs[:, 0], pairs[:, 1])

    @precondition(lambda self: self.moving is not None)
    @rule()
    def follow_changes_and_use_the_indexes_on_disk(self):
        follow(self.bucket.take_changes(), *self.moving)
        self.bucket.end_move(*self.moving)
        self.on_disk.append(self.bucket)
        self.moving = None

    def give_up_move(self):
        for index in self.moving or ():
            index.close()
        self.moving = None

    def teardown(self):
        if hasattr(self, "bucket"):
            self.give_up_move()
            for bucket in self.on_disk:
                bucket.close()

    @invariant()
    def readers_see_what_is_committed(self):
        if not hasattr(self, "bucket"):
            return
        model = self.committed
        keys = [(k1, k2) for k1 in range(4) for k2 in ("", "a", "ab", "é", "none")] * 2
        asked = pa.table({"k1": pa.array([k for k, _ in keys], pa.int32()), "k2": [k for _, k in keys]})
        rows, found = self.bucket.get(asked)
        assert found.tolist() == [key in model.rows for key in keys]
        assert [comparable(row) for row in rows.to_pylist()] == [
            comparable(model.rows.get(key, dict.fromkeys(self.descriptor.column_names))) for key in keys
        ]
        assert self.bucket.n_keys == len(model.rows) == len(self.bucket.current_offsets())
        if model.rows:
            scanned = self.log.fetch(self.bucket.current_offsets()).to_pylist()
            assert {model.key_of(row): comparable(row) for row in scanned} == {key: comparable(row) for key, row in model.rows.items()}

    @invariant()
    def prefix_lookup_finds_exactly_the_rows_of_each_prefix(self):
        if not hasattr(self, "bucket"):
            return
        prefixes = pa.table({"k1": pa.array([2, 0, 7, 2], pa.int32())})
        for limit in (None, 2):
            rows, position = self.bucket.prefix_get(prefixes, limit)
            expected = []
            for at, prefix in enumerate([2, 0, 7, 2]):
                names = sorted((k2.encode() for k1, k2 in self.committed.rows if k1 == prefix), key=lambda text: (len(text), text))
                expected += [(at, prefix, name.decode()) for name in names[:limit]]
            assert list(zip(position.tolist(), rows["k1"].to_pylist(), rows["k2"].to_pylist(), strict=True)) == expected


@pytest.mark.parametrize("hash_keys", [hash64, weak_hash], ids=["hash64", "colliding"])
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("last_row", {}),
        ("last_row", WAL),
        ("auto_increment", {}),
        ("auto_increment", WAL),
        ("first_row", {}),
        ("first_row", WAL),
        ("versioned", {}),
        ("versioned", {"table.merge-engine.versioned.ver-column": "at"}),
        ("versioned", {"table.merge-engine.versioned.ver-column": "n", **WAL}),
        ("aggregation", {}),
        ("aggregation", {"table.delete.behavior": "allow"}),
        ("aggregation", {"table.delete.on-zero": "seen"}),
        ("aggregation", {"table.delete.on-zero": "total"}),
    ],
    ids=lambda value: "_".join(value.values()) or "default" if isinstance(value, dict) else value,
)
def test_a_bucket_equals_the_naive_table_after_every_step(engine, options, hash_keys):
    machine = type("Machine", (BucketMachine,), {"engine": engine, "options": options, "hash_keys": staticmethod(hash_keys)})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
    )


@pytest.mark.parametrize("hash_keys", [hash64, weak_hash], ids=["hash64", "colliding"])
@pytest.mark.parametrize(("engine", "options"), [("last_row", {}), ("last_row", WAL), ("aggregation", {"table.delete.behavior": "allow"})])
def test_a_bucket_whose_indexes_move_to_disk_on_the_way_equals_the_naive_table(engine, options, hash_keys, tmp_path):
    attributes = {"engine": engine, "options": options, "hash_keys": staticmethod(hash_keys), "folder": tmp_path}
    run_state_machine_as_test(
        type("Machine", (BucketMachine,), attributes),
        settings=settings(max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)),
    )
