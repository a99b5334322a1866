"""Netting: a stretch of changelog becomes one net change per key. Pure, on Arrow.

The changelog is complete (+I for a new key, -U and +U for a changed one, -D for a removed one), so the first change of
a key says whether the row existed before the stretch and the last one whether it exists after it. Of a table with row time to live
it is not: rows leave without a -D.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class NetChanges:
    """What a stretch of changelog amounts to; every key is in at most one of the three.

    inserts  rows whose key did not exist before the stretch
    updates  rows whose key existed, as they are now
    deletes  rows whose key existed and is gone, as they last were
    """

    inserts: pa.Table
    updates: pa.Table
    deletes: pa.Table

    @property
    def n_rows(self) -> int:
        return self.inserts.num_rows + self.updates.num_rows + self.deletes.num_rows

    @property
    def upserts(self) -> pa.Table:
        return pa.concat_tables([self.inserts, self.updates])

    def doubting_inserts(self, partitions: Collection[str]) -> NetChanges:
        """The same changes, with inserts into these partitions counted as updates: their keys may exist after all."""
        if not partitions or self.inserts.num_rows == 0:
            return self
        doubtful = pc.is_in(self.inserts["_partition"], pa.array(sorted(partitions), pa.string()))
        return NetChanges(
            inserts=self.inserts.filter(pc.invert(doubtful)),
            updates=pa.concat_tables([self.updates, self.inserts.filter(doubtful)]),
            deletes=self.deletes,
        )


def net_changes(changes: pa.Table, keys: Sequence[str], *, are_inserts_new: bool = True) -> NetChanges:
    """One net change per key.

    are_inserts_new  a key whose first change is +I did not exist before. False: it may have, and left without a -D; then an insert
                     counts as an update, and a key inserted and deleted inside the stretch as deleted

    Shapes: changes (n,) with `_change_type` first and, for one key, in log order -> three tables with all its columns.
    Meaning: a key inserted and deleted inside the stretch is in none of them.
    Cost:    one ordered hash aggregation, three takes.
    """
    rows = changes.filter(pc.not_equal(changes["_change_type"], "-U")).combine_chunks()
    if rows.num_rows == 0:
        return NetChanges(rows, rows, rows)
    numbered = rows.select(list(keys)).append_column("__row", pa.array(np.arange(rows.num_rows, dtype=np.int64)))
    grouped = numbered.group_by(list(keys), use_threads=False).aggregate([("__row", "first"), ("__row", "last")])
    first = rows["_change_type"].take(grouped["__row_first"])
    last = rows["_change_type"].take(grouped["__row_last"])
    existed = pc.not_equal(first, "+I").combine_chunks().to_numpy(zero_copy_only=False)
    if not are_inserts_new:
        existed = np.ones(len(existed), np.bool_)
    exists = pc.not_equal(last, "-D").combine_chunks().to_numpy(zero_copy_only=False)
    at = grouped["__row_last"].combine_chunks().to_numpy()

    def pick(mask: np.ndarray) -> pa.Table:
        return rows.take(pa.array(np.sort(at[mask])))

    return NetChanges(inserts=pick(~existed & exists), updates=pick(existed & exists), deletes=pick(existed & ~exists))
