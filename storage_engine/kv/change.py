"""KvChange: what one operation changes in a bucket, as rows of its changelog."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.kv.columns import contiguous
from storage_engine.kv.key_index import Bools, Hashes
from storage_engine.log.frame import DELETE, INSERT, UPDATE_AFTER


@dataclass(frozen=True)
class KvChange:
    """What an operation changes: the rows to append to the bucket's changelog, and what stage() needs to follow.

    Shapes: rows (k,) one chunk in the table's schema, change_types (k,) codes of log/frame.py, hashes (k,) of the rows' keys.
    homeless  row -> encoded key, for keys whose hash belongs to another key in the index
    """

    rows: pa.Table
    change_types: npt.NDArray[np.uint8]
    hashes: Hashes
    homeless: dict[int, bytes] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        return len(self.change_types)

    @property
    def batch(self) -> pa.RecordBatch:
        """The rows as one record batch, for the frame."""
        return pa.RecordBatch.from_arrays([contiguous(self.rows, name) for name in self.rows.column_names], schema=self.rows.schema)

    def outcome(self) -> tuple[Bools, Bools]:
        """Rows that are current from now on, and rows whose key is gone: (k,) each."""
        types = self.change_types
        return (types == INSERT) | (types == UPDATE_AFTER), types == DELETE
