"""Instants: before TIMESTAMP columns go from milliseconds to microseconds, whether every stored instant is one in microseconds.

Owner: engine/embedded.py asks while it holds the writer's lock. Any other widening holds for every value and is not asked about.
Cost:  one column of every frame of the table is read.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.engine.buckets import Buckets
from storage_engine.engine.state import TableState
from storage_engine.errors import StatementRefused
from storage_engine.log.commit_log import CommitLog
from storage_engine.log.frame import decode_batch
from storage_engine.log.stored_frame import FrameLocation
from storage_engine.schema.descriptor import TableDescriptor

_MS_MAX = (2**63 - 1) // 1000


def check_instants(log: CommitLog, buckets: Buckets, table: TableState, wanted: TableDescriptor) -> None:
    """Errors: StatementRefused naming a column that is to be widened and holds an instant which microseconds cannot say."""
    types = {column.field_id: column.arrow.type for column in wanted.columns}
    names = [column.name for column in table.descriptor.columns if _grows(column.arrow.type, types.get(column.field_id))]
    if not names:
        return
    schemas = table.schemas
    for bucket in buckets.of_table(table):
        for position, length in bucket.frames.entries[["position", "length"]].tolist():
            stored = log.read(FrameLocation(position, length))
            schema_id = stored.header.schema_id
            pruner = schemas.frame_columns(schema_id, names).pruner
            rows = decode_batch(stored.message, schemas.arrow_schema(schema_id)) if pruner is None else pruner.decode(stored.message)
            for name in set(names).intersection(rows.schema.names):
                bounds = pc.min_max(rows.column(name).view(pa.int64())).as_py()
                if max(bounds["max"] or 0, -(bounds["min"] or 0)) > _MS_MAX:
                    raise StatementRefused(
                        f"column {name} holds an instant that microseconds cannot say",
                        where=f"{table.descriptor.name}, bucket {bucket.name}",
                        next_step="Leave its type, or correct the row and write to a new table.",
                    )


def _grows(old: pa.DataType, new: pa.DataType | None) -> bool:
    return new is not None and pa.types.is_timestamp(old) and pa.types.is_timestamp(new) and (old.unit, new.unit) == ("ms", "us")
