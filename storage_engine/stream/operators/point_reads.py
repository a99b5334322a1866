"""Point reads: rows of the store that a micro-batch looks up: as they are now, or as they stood before or after its input.

A table moves on while a micro-batch is computed. What it held at given offsets is what it holds now, with every key that has changed
since put back: the first change of a key after the offsets says what the key held there (-U and -D carry the old row, before a +I there
was none). So a join sees exactly the input of its job, and recomputing it from recorded offsets gives the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.client.store import Store
from storage_engine.client.table import Table
from storage_engine.errors import OffsetOutOfRange
from storage_engine.schema.descriptor import Offsets, TableBucket
from storage_engine.stream.functions.aggregates import WEIGHT
from storage_engine.stream.operators.beside import Beside
from storage_engine.stream.operators.inputs import InputRange, current_rows, with_weight
from storage_engine.stream.plan.tree import StoredSide

_NUMBER: Final = "__number"


class StoreReader:
    """Point reads for one micro-batch over the input `work`; `inputs` are its rows, by scan. What they tell is not read again."""

    def __init__(
        self,
        store: Store,
        work: InputRange,
        inputs: Mapping[int, pa.Table],
        beside: Beside | None = None,
        settle: Callable[[str], object] = lambda _table: None,
    ) -> None:
        """`beside`: where several questions are asked at once. `settle`: called with a table that the job may write, before it is read."""
        self._settle = settle
        self._beside = beside or Beside()
        self._store = store
        self._backend = store.backend
        self._work = work
        self._inputs = inputs

    def lookup(self, table: str, keys: pa.Table, columns: list[str], *, insert_if_not_exists: bool = False) -> pa.Table:
        """One row per key in the order of the keys, with a last column `_found`."""
        self._settle(table)
        return self._backend.lookup(table, keys, columns, insert_if_not_exists=insert_if_not_exists)

    def prefix_lookup(self, table: str, prefixes: pa.Table, columns: list[str]) -> pa.Table:
        self._settle(table)
        return self._backend.prefix_lookup(table, prefixes, columns, None)

    def all_rows(self, table: str) -> pa.Table:
        """The current rows of a state table: the job is the only one that writes it."""
        self._settle(table)
        return self._store.table(table).read()

    def rows_of_input(self, table: str, positions: pa.Table, wanted: str) -> pa.Table:
        """Rows of the micro-batch's input by their places (POSITION without the time), in the columns of the table `wanted`.

        A column that the input's table does not have is null.
        """
        start, stop = (offsets.get(table, {}) for offsets in (self._work.start, self._work.stop))
        ends = {bucket: end for bucket, end in sorted(stop.items()) if end > start.get(bucket, 0)}
        begins = {bucket: start.get(bucket, 0) for bucket in ends}
        handle = self._store.table(table)
        schema = self._store.describe(wanted).arrow_schema
        shared = [name for name in schema.names if name in handle.descriptor.column_names]
        rows = handle.scan(shared, start=begins, stop=ends, metadata=True, as_of=self._work.as_of).read_all()
        names = ["_partition", "_bucket", "_log_offset"]
        keys = positions.rename_columns(names).cast(pa.schema([rows.schema.field(name).with_nullable(nullable=True) for name in names]))
        found = matching(rows, keys, names, "left semi")
        columns = [found[item.name] if item.name in shared else pa.nulls(found.num_rows, item.type) for item in schema]
        return pa.table(columns, names=schema.names)

    def newest_partition(self, table: str) -> str:
        """The last partition by name that has rows now, "" when none has."""
        return newest_partition(self._backend.offsets(table, "latest"))

    def rows_around(self, asked: Sequence[tuple[StoredSide, pa.Table]]) -> list[tuple[pa.Table, pa.Table]]:
        """Rows of each side's table under its keys, in the side's columns, as they stood before and after the micro-batch's input.

        The sides are asked at once: what each held at the input's offsets does not depend on when it is asked.
        Errors: OffsetOutOfRange when the changelog no longer reaches back to the start.
        """
        return self._beside.all([partial(self._around, side, keys) for side, keys in asked])

    def _around(self, side: StoredSide, keys: pa.Table) -> tuple[pa.Table, pa.Table]:
        table = Table(self._backend, side.scan.table)
        columns = list(side.scan.columns)
        names = list(dict.fromkeys([*columns, *table.descriptor.primary_key]))
        stop = self._work.stop.get(table.name, {})
        rows = self._current(side, keys, names)  # first: what changes meanwhile is in the changelog read next
        version, latest = self._store.latest([table.name])
        later = changes_between(table, stop, latest[table.name], names, as_of=version, are_newest=True)
        after = put_back(rows, _of_keys(later, keys), table.descriptor.primary_key)
        before = put_back(after, _of_keys(self._read(side, table, names), keys), table.descriptor.primary_key)
        return before.select(columns), after.select(columns)

    def _read(self, side: StoredSide, table: Table, names: list[str]) -> pa.Table:
        """The changes of a side's table that the micro-batch has read: its input, where that has the whole key."""
        rows = self._inputs.get(side.scan.id)
        if rows is None or not {*names, WEIGHT} <= set(rows.column_names):
            start, stop = (offsets.get(table.name, {}) for offsets in (self._work.start, self._work.stop))
            return changes_between(table, start, stop, names, as_of=self._work.as_of, are_newest=self._work.is_snapshot)
        return rows.select([*names, WEIGHT])

    def _current(self, side: StoredSide, keys: pa.Table, names: list[str]) -> pa.Table:
        name = side.scan.table.name
        if side.is_prefix:
            return self._backend.prefix_lookup(name, keys, names, None)
        found = self._backend.lookup(name, keys, names, insert_if_not_exists=False)
        return found.filter(found["_found"]).select(names)


def newest_partition(offsets: Offsets) -> str:
    """The last partition by name in which rows were written, "" when there is none: max_pt()."""
    return max((bucket.partition for bucket, end in offsets.items() if end > 0), default="")


def changes_between(
    table: Table, start: Offsets, stop: Offsets, names: list[str], *, as_of: int | None = None, are_newest: bool = False
) -> pa.Table:
    """Changes between two sets of offsets, in the order of their commits, those that take a row back with WEIGHT -1.

    are_newest  `stop` are the ends at the version `as_of`: of partitions that `start` says nothing of, and whose first changes have
                expired, the rows at it stand for their changes
    """
    ends: dict[TableBucket, int] = {bucket: end for bucket, end in stop.items() if end > start.get(bucket, 0)}
    begins = {bucket: start.get(bucket, 0) for bucket in ends}
    try:
        return with_weight(table.scan(names, start=begins, stop=ends, as_of=as_of).read_all(), names)
    except OffsetOutOfRange:
        read = {bucket.partition for bucket, offset in start.items() if offset}
        unread = [bucket for bucket in ends if bucket.partition not in read]
        if not unread or not are_newest or as_of is None:
            raise
    rest = {bucket: end for bucket, end in ends.items() if bucket.partition in read}
    read_before = with_weight(table.scan(names, start=begins, stop=rest, as_of=as_of).read_all(), names)
    rows = current_rows(table, names, unread, as_of)
    return pa.concat_tables([read_before, rows.cast(read_before.schema)])


def _of_keys(changes: pa.Table, keys: pa.Table) -> pa.Table:
    return matching(changes, keys, keys.column_names, "left semi")


def put_back(rows: pa.Table, changes: pa.Table, key: Sequence[str]) -> pa.Table:
    """`rows` with every key in `changes` (in the order of their commits) as it was before its first change."""
    if changes.num_rows == 0:
        return rows
    first = _numbered(changes, key).group_by(list(key), use_threads=False).aggregate([(_NUMBER, "min")])
    earliest = changes.take(first[f"{_NUMBER}_min"])
    before = earliest.filter(pc.less(earliest[WEIGHT], 0)).select(rows.column_names)
    return pa.concat_tables([matching(rows, first, key, "left anti"), before.cast(rows.schema)])


def matching(rows: pa.Table, keys: pa.Table, names: Sequence[str], how: Literal["left semi", "left anti"]) -> pa.Table:
    """The rows whose `names` are (not) in `keys`, in their order. Only keys are joined: Arrow joins no nested columns."""
    if rows.num_rows == 0:
        return rows
    found = _numbered(rows, names).join(keys.select(list(names)), list(names), join_type=how, use_threads=False)
    return rows.take(pa.array(np.sort(found[_NUMBER].to_numpy())))


def _numbered(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    return rows.select(list(names)).append_column(_NUMBER, pa.array(np.arange(rows.num_rows)))
