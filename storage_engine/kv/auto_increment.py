"""AutoIncrement: ids 1, 2, 3, ... of one table, given out inside the commit that uses them.

Owner: the engine keeps one per table; every bucket of the table takes ids from it.
Holds: the commit record carries `last_id`, so an id is used at most once after any crash, and there are no gaps:
       rollback() takes back what a failed commit took.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from storage_engine.errors import SchemaMismatch
from storage_engine.schema.descriptor import TableDescriptor


class AutoIncrement:
    """Gives out ids. `last_id` is the last one given, 0 before the first; commit() makes it the recorded one."""

    def __init__(self, descriptor: TableDescriptor, last_id: int = 0) -> None:
        self._recorded = last_id
        self.last_id = last_id
        self.alter(descriptor)

    def alter(self, descriptor: TableDescriptor) -> None:
        """The column was renamed or widened."""
        column = descriptor.auto_increment_column
        assert column is not None, f"{descriptor.name} has no auto-increment column"
        self.type: pa.DataType = descriptor.column(column).arrow.type
        self._where = f"table {descriptor.name}, column {column}"
        self._id_max = 2 ** (self.type.bit_width - 1) - 1

    def take(self, n: int) -> pa.Array:
        """The next `n` ids, in the column's type. Errors: SchemaMismatch when the type cannot hold them."""
        first = self.last_id + 1
        if self.last_id + n > self._id_max:
            raise SchemaMismatch(
                f"{n:,} new keys need ids up to {self.last_id + n:,}, the column ends at {self._id_max:,}",
                where=self._where, next_step="Declare the column BIGINT in a new table.",
            )  # fmt: skip
        self.last_id += n
        return pa.array(np.arange(first, first + n, dtype=self.type.to_pandas_dtype()))

    def commit(self) -> None:
        """What was taken is recorded."""
        self._recorded = self.last_id

    def rollback(self) -> None:
        """The commit failed: what was taken since the last commit() is free again."""
        self.last_id = self._recorded
