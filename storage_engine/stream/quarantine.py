"""Quarantine: rows on which a job's expressions fail, in the log table DATABASE.job_quarantine beside the job's sink.

    job, epoch                                       which job, and which definition of it
    source, source_partition, source_bucket, source_offset   where the row stands in its log
    change_type                                      +A of a log; of a changelog +I -U +U -D
    reason, row_text                                 the error, and the row as JSON

Holds: a quarantined row commits together with the offsets that pass over it, so it is there exactly once; the proof leaves it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import WriteOp
from storage_engine.client.store import Store
from storage_engine.errors import AlreadyExists, InvalidPartition, SchemaMismatch
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.stream.inputs import InputRange
from storage_engine.stream.job import JobDescriptor

POISON: Final = (
    duckdb.DataError, duckdb.InvalidInputException, duckdb.ConstraintException, SchemaMismatch, InvalidPartition, pa.ArrowInvalid,
)  # fmt: skip
"""Errors that a row may be the cause of. Others (memory, the store, a defect) stop the job whatever its option."""

N_IN_A_ROW_MAX = 1_000
"""A job that meets so many poison rows one after another is wrong itself: it stops."""

PLACE = ("source_partition", "source_bucket", "source_offset")
_COLUMNS = {
    "job": "STRING", "epoch": "INT", "source": "STRING", "source_partition": "STRING", "source_bucket": "INT", "source_offset": "BIGINT",
    "change_type": "STRING", "reason": "STRING", "row_text": "STRING",
}  # fmt: skip
_TYPES = {"STRING": pa.string(), "INT": pa.int32(), "BIGINT": pa.int64()}
_METADATA = {"_change_type", "_log_offset", "_commit_timestamp", "_partition", "_bucket"}


def quarantine_table(job: JobDescriptor) -> str:
    """The table's name: in the database of the job's sink."""
    return f"{job.sink.partition('.')[0]}.job_quarantine"


def create_quarantine(store: Store, job: JobDescriptor) -> None:
    """Make the table, unless it is there. Errors: AlreadyExists for a table of that name with other columns."""
    name = quarantine_table(job)
    wanted = TableDescriptor(name, tuple(Column(column, kind) for column, kind in _COLUMNS.items()))
    made = store.create_table(wanted, if_not_exists=True).descriptor
    if [(column.name, column.type) for column in made.columns] != list(_COLUMNS.items()) or made.has_primary_key:
        raise AlreadyExists(
            f"{name} is a table of its own, and where poison rows would go", where=f"job {job.name}", next_step="Rename that table."
        )


def poison_op(store: Store, job: JobDescriptor, work: InputRange, error: Exception) -> WriteOp | None:
    """The write that puts the one row of `work` into quarantine; None when there is no row at its offset."""
    source, bucket, offset = next(
        (table, bucket, end - 1)
        for table, ends in work.stop.items()
        for bucket, end in ends.items()
        if end > work.start.get(table, {}).get(bucket, 0)
    )
    rows = store.table(source).scan(start={bucket: offset}, stop={bucket: offset + 1}, metadata=True, as_of=work.as_of).read_all()
    if rows.num_rows == 0:
        return None
    (row,) = rows.to_pylist()
    text = json.dumps({name: value for name, value in row.items() if name not in _METADATA}, default=str, ensure_ascii=False)
    values = (job.name, job.epoch, source, bucket.partition, bucket.bucket, offset, row["_change_type"], str(error), text)
    listed = {name: pa.array([value], _TYPES[kind]) for (name, kind), value in zip(_COLUMNS.items(), values, strict=True)}
    return WriteOp(quarantine_table(job), "append", pa.table(listed))


def quarantined(store: Store, job: JobDescriptor, epochs: tuple[int, ...]) -> Mapping[str, pa.Table]:
    """Source table -> the places (PLACE) of its rows that the job's definitions of these epochs left out."""
    name = quarantine_table(job)
    if name not in store.tables():
        return {}
    rows = store.table(name).scan(["job", "epoch", "source", *PLACE]).read_all()
    of_job = pc.and_(pc.equal(rows["job"], job.name), pc.is_in(rows["epoch"], pa.array(epochs, pa.int32())))
    rows = rows.filter(of_job)
    return {source: rows.filter(pc.equal(rows["source"], source)).select(PLACE) for source in pc.unique(rows["source"]).to_pylist()}


def without(rows: pa.Table, places: pa.Table | None) -> pa.Table:
    """Scanned rows (with metadata _partition, _bucket, _log_offset) without those in quarantine, in their order."""
    if places is None or places.num_rows == 0:
        return rows
    key = ["_partition", "_bucket", "_log_offset"]
    number = pa.array(range(rows.num_rows), pa.int64())
    numbered = rows.select(key).append_column("__number", number)
    gone = places.rename_columns(key).cast(numbered.select(key).schema)
    kept = numbered.join(gone, key, join_type="left anti", use_threads=False)["__number"]
    return rows.take(kept.take(pc.sort_indices(kept)))
