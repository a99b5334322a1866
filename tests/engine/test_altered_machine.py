"""Random DDL (add, rename, drop, widen, rescale) between writes, restarts and reads at older versions, against a plain model."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import storage_engine
from storage_engine.engine.embedded import EmbeddedBackend
from storage_engine.engine.fsck import check_store
from storage_engine.errors import SchemaMismatch
from storage_engine.stream import SqlSession

WIDER = {"TINYINT": "SMALLINT", "SMALLINT": "INT", "INT": "BIGINT", "FLOAT": "DOUBLE", "VARCHAR(4)": "STRING"}
LARGEST = {"TINYINT": 2**7, "SMALLINT": 2**15, "INT": 2**31, "BIGINT": 2**63}
NAMES = ("a", "b", "c", "d", "e")
KEYS = st.lists(st.integers(0, 14), min_size=1, max_size=8, unique=True)

Row = dict[int, Any]
"""Field number in the model -> value; a column that a row does not have is null."""


class Field:
    """A column of the model: what a row calls it does not change when its name does."""

    def __init__(self, number: int, name: str, kind: str) -> None:
        self.number, self.name, self.kind = number, name, kind

    def value(self, seed: int) -> Any:
        if seed % 7 == 0:
            return None
        if self.kind in LARGEST:
            return (LARGEST[self.kind] - 1 - seed) * (-1 if seed % 2 else 1)
        return seed / 4 if self.kind in ("FLOAT", "DOUBLE") else f"s{seed % 99}" if self.kind == "VARCHAR(4)" else f"text {seed}"


class AlteredTables(RuleBasedStateMachine):
    """One primary-key table and one log, altered alike."""

    @initialize(partitioned=st.booleans(), wal=st.booleans())
    def create(self, partitioned: bool, wal: bool) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="altered-")
        self.path = Path(self.directory.name) / "s"
        self.fields = [Field(0, "a", "TINYINT"), Field(1, "b", "VARCHAR(4)")]
        self.n_fields, self.rows, self.log, self.seed = 2, {}, [], 0
        self.key, self.part, self.is_wal = "k", "p", wal
        self.versions: list[tuple[int, dict[int, Row], int]] = []
        self.open()
        options = ", 'table.changelog.image' = 'wal'" if wal else ""
        self.session.execute(f"""
            CREATE TABLE x.t (k BIGINT NOT NULL, p STRING NOT NULL, a TINYINT, b VARCHAR(4), PRIMARY KEY (k, p) NOT ENFORCED)
            {"PARTITIONED BY (p)" if partitioned else ""} WITH ('bucket.num' = '2', 'bucket.key' = 'k'{options});
            CREATE TABLE x.log (k BIGINT NOT NULL, p STRING NOT NULL, a TINYINT, b VARCHAR(4))
            {"PARTITIONED BY (p)" if partitioned else ""} WITH ('bucket.num' = '2', 'bucket.key' = 'k')
        """)
        self.stale = self.store.table("x.t")

    def open(self) -> None:
        self.store = storage_engine.connect(self.path.as_uri(), sync="none")
        self.session = SqlSession(self.store)

    def alter(self, clause: str) -> None:
        self.session.execute(f"ALTER TABLE x.t {clause}; ALTER TABLE x.log {clause}")

    # columns

    @rule(name=st.sampled_from(NAMES), kind=st.sampled_from(sorted(WIDER)))
    def add(self, name: str, kind: str) -> None:
        if name not in [field.name for field in self.fields]:
            self.alter(f"ADD {name} {kind}")
            self.fields.append(Field(self.n_fields, name, kind))
            self.n_fields += 1

    @precondition(lambda self: self.fields)
    @rule(at=st.integers(0, 9), name=st.sampled_from(NAMES))
    def rename(self, at: int, name: str) -> None:
        if name not in [field.name for field in self.fields]:
            field = self.fields[at % len(self.fields)]
            self.alter(f"RENAME {field.name} TO {name}")
            field.name = name

    @rule()
    def rename_key(self) -> None:
        self.alter(f"RENAME {self.key} TO {self.key}k")
        self.key += "k"

    @rule()
    def rename_second_key(self) -> None:
        self.alter(f"RENAME {self.part} TO {self.part}p")
        self.part += "p"

    @precondition(lambda self: self.fields)
    @rule(at=st.integers(0, 9))
    def drop(self, at: int) -> None:
        field = self.fields.pop(at % len(self.fields))
        self.alter(f"DROP {field.name}")
        for rows in (self.rows, *(rows for _, rows, _ in self.versions)):
            for row in rows.values():
                row.pop(field.number, None)

    @precondition(lambda self: any(field.kind in WIDER for field in self.fields))
    @rule(at=st.integers(0, 9))
    def widen(self, at: int) -> None:
        fields = [field for field in self.fields if field.kind in WIDER]
        field = fields[at % len(fields)]
        self.alter(f"MODIFY {field.name} {WIDER[field.kind]}")
        field.kind = WIDER[field.kind]

    @rule(n=st.integers(1, 6))
    def rescale(self, n: int) -> None:
        self.alter(f"SET ('bucket.num' = '{n}')")

    # rows

    def new_rows(self, keys: list[int], fields: list[Field]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {self.key: keys, self.part: [f"p{key % 2}" for key in keys]}
        for field in fields:
            values = []
            for _ in keys:
                self.seed += 1
                values.append(field.value(self.seed % 60))
            columns[field.name] = values
        return columns

    @rule(keys=KEYS)
    def upsert(self, keys: list[int]) -> None:
        columns = self.new_rows(keys, self.fields)
        self.store.table("x.t").upsert(columns)
        self.store.table("x.log").append(columns)
        for i, key in enumerate(keys):
            row = {field.number: columns[field.name][i] for field in self.fields}
            self.rows[key] = row
            self.log.append((key, dict(row)))

    @precondition(lambda self: self.fields)
    @rule(keys=KEYS, at=st.integers(0, 9))
    def upsert_one_column(self, keys: list[int], at: int) -> None:
        field = self.fields[at % len(self.fields)]
        columns = self.new_rows(keys, [field])
        self.store.table("x.t").upsert(columns, columns=list(columns))
        for i, key in enumerate(keys):
            self.rows[key] = {**self.rows.get(key, {}), field.number: columns[field.name][i]}

    @rule(keys=KEYS)
    def delete(self, keys: list[int]) -> None:
        self.store.table("x.t").delete(self.new_rows(keys, []))
        for key in keys:
            self.rows.pop(key, None)

    @rule(keys=KEYS)
    def write_with_an_older_table(self, keys: list[int]) -> None:
        """A handle from before some changes writes what it knows, or is told which name is gone."""
        known = self.stale.descriptor.column_names
        columns = {name: values for name, values in self.new_rows(keys, self.fields).items() if name in known}
        unknown = [name for name in known if name not in (self.key, self.part, *(field.name for field in self.fields))]
        if unknown:
            with pytest.raises(SchemaMismatch, match=r"was (renamed|dropped)"):
                self.stale.read()
        elif self.key in known and self.part in known:
            try:
                self.stale.upsert(columns)
            except SchemaMismatch:  # a value that only fits the column as it is now
                now = self.store.describe("x.t")
                assert any(self.stale.descriptor.column(name).arrow.type != now.column(name).arrow.type for name in columns)
                return
            for i, key in enumerate(keys):
                self.rows[key] = {field.number: columns[field.name][i] for field in self.fields if field.name in columns}

    @rule()
    def open_the_table_again(self) -> None:
        self.stale = self.store.table("x.t")

    @rule()
    def remember_this_version(self) -> None:
        self.versions.append((self.store.version(), {key: dict(row) for key, row in self.rows.items()}, len(self.log)))

    @rule(keep_checkpoint=st.booleans())
    def reopen(self, keep_checkpoint: bool) -> None:
        self.store.close()
        if not keep_checkpoint:
            (self.path / "CHECKPOINT").unlink(missing_ok=True)
        self.open()
        self.stale = self.store.table("x.t")

    # what must hold

    def plain(self, key: int, row: Row) -> tuple[Any, ...]:
        return (key, f"p{key % 2}", *(row.get(field.number) for field in self.fields))

    @invariant()
    def reads_lookups_and_counts_equal_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        table = self.store.table("x.t")
        expected = {key: self.plain(key, row) for key, row in self.rows.items()}
        rows = [tuple(row.values()) for row in table.read().to_pylist()]
        assert sorted(rows, key=str) == sorted(expected.values(), key=str)
        assert table.count() == len(expected)
        found = table.lookup(self.new_rows(list(range(15)), []), missing="null").to_pylist()
        for key, row in enumerate(found):
            values = tuple(row.values())
            assert values[-1] == (key in expected)
            assert key not in expected or values[:-1] == expected[key]
        log = [tuple(row.values()) for row in self.store.table("x.log").scan().read_all().to_pylist()]
        assert Counter(map(str, log)) == Counter(str(self.plain(key, row)) for key, row in self.log)

    @invariant()
    def the_changelog_leads_to_the_rows(self) -> None:
        if not hasattr(self, "store"):
            return
        state: dict[tuple[int, str], tuple[Any, ...]] = {}
        for row in self.store.table("x.t").scan().read_all().to_pylist():
            kind, *values = row.values()
            key = (values[0], values[1])
            if kind in ("-U", "-D"):
                assert state.pop(key) == tuple(values)
            else:
                assert key not in state or self.is_wal
                state[key] = tuple(values)
        assert {key[0]: values for key, values in state.items()} == {key: self.plain(key, row) for key, row in self.rows.items()}

    @invariant()
    def older_versions_are_what_they_were(self) -> None:
        if not hasattr(self, "store"):
            return
        for version, rows, n_log in self.versions[-3:]:
            table = self.store.table("x.t")
            got = [tuple(row.values()) for row in table.read(at=version).to_pylist()]
            assert sorted(got, key=str) == sorted((self.plain(key, row) for key, row in rows.items()), key=str)
            log = self.store.table("x.log")
            assert log.scan(stop=log.offsets(at_version=version)).read_all().num_rows == n_log

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.close()
        report = check_store(self.path, keys=True)
        assert report.findings == []
        self.directory.cleanup()


AlteredTables.TestCase.settings = settings(
    max_examples=int(os.environ.get("FLASHLAKE_CAMPAIGN", "12")), stateful_step_count=25, deadline=None
)
TestAlteredTables = AlteredTables.TestCase


def test_a_store_closed_between_the_change_and_the_move_completes_it_when_it_runs_again(tmp_path: Path) -> None:
    backend = EmbeddedBackend.open(tmp_path / "s", sync="none", maintenance=False)
    with storage_engine.connection.wrap(backend) as store:
        store.execute("CREATE TABLE x.t (p STRING, k BIGINT, PRIMARY KEY (p, k) NOT ENFORCED) PARTITIONED BY (p) WITH ('bucket.num' = '2')")
        store.table("x.t").upsert({"p": ["a"] * 20 + ["b"] * 20, "k": list(range(40))})
        backend._rescaler.rescale = lambda of: None  # what a kill right after the first commit leaves  # type: ignore[method-assign]
        store.execute("ALTER TABLE x.t SET ('bucket.num' = '5')")
        assert {bucket.bucket for bucket in store.table("x.t").offsets()} == {0, 1}
        assert store.table("x.t").lookup({"p": ["a", "b"], "k": [3, 33]}).num_rows == 2

    backend = EmbeddedBackend.open(tmp_path / "s", sync="none", maintenance=False)
    with storage_engine.connection.wrap(backend) as store:
        assert {bucket.bucket for bucket in store.table("x.t").offsets()} == {0, 1}
        backend.maintenance.run_once(0)

        assert {bucket.bucket for bucket in store.table("x.t").offsets()} == {0, 1, 2, 3, 4}
        assert sorted(store.table("x.t").read()["k"].to_pylist()) == list(range(40))
