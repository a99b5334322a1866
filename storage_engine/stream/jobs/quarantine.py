"""Quarantine: rows on which a job's expressions fail, in the log table DATABASE.job_quarantine beside the job's sink.

    job, epoch                                       which job, and which definition of it
    source, source_partition, source_bucket, source_offset   where the row stands in its log
    change_type                                      +A of a log; of a changelog +I -U +U -D
    reason, row_text                                 the error, and the row as JSON

Holds: a quarantined row commits together with the offsets that pass over it, so it is there exactly once; the proof leaves it out.
       What was not taken in is not taken back: when a row of a primary-key table is in quarantine, the change that ends it is left out
       too (OpenKeys). A delta join reads such a table itself, rows in quarantine included: a job with one refuses the option.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_engine.api import WriteOp
from storage_engine.client.store import Store
from storage_engine.errors import AlreadyExists, InvalidPartition, SchemaMismatch, StatementRefused
from storage_engine.schema.descriptor import Column, Offsets, TableDescriptor
from storage_engine.stream.functions.python_functions import FunctionFailed
from storage_engine.stream.jobs.held import InputGone, expired, gaps_of
from storage_engine.stream.jobs.job import JobDescriptor
from storage_engine.stream.jobs.options import POISON_OPTION
from storage_engine.stream.operators.inputs import TAKEN_BACK, InputRange
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.plan.tree import StoredSide, scans, walk

POISON: Final = (
    duckdb.DataError, duckdb.InvalidInputException, duckdb.ConstraintException, SchemaMismatch, InvalidPartition, FunctionFailed,
    pa.ArrowInvalid,
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
    options = {"table.log.ttl": "-1"}  # as long as a job is proved, the rows that it left out must be known
    wanted = TableDescriptor(name, tuple(Column(column, kind) for column, kind in _COLUMNS.items()), options=options)
    made = store.create_table(wanted, if_not_exists=True).descriptor
    if [(column.name, column.type) for column in made.columns] != list(_COLUMNS.items()) or made.has_primary_key:
        raise AlreadyExists(
            f"{name} is a table of its own, and where poison rows would go", where=f"job {job.name}", next_step="Rename that table."
        )


def check_quarantines(job: JobDescriptor, plan: JobPlan) -> None:
    """Errors: StatementRefused for a job whose plan cannot leave rows out."""
    for node in walk(plan.root):
        side = next((item for item in getattr(node, "sides", ()) if isinstance(item, StoredSide)), None)
        if side is not None:
            raise StatementRefused(
                f"'{POISON_OPTION}' = 'quarantine' with a join that reads {side.scan.table.name} itself: rows left out would come back",
                where=f"job {job.name}",
                next_step=f"SET '{POISON_OPTION}' = 'fail', or use expressions that do not fail (TRY_CAST, NULLIF).",
            )


@dataclass(frozen=True)
class Poison:
    """One row for the quarantine: the write, and the row's key where it comes from a primary-key table."""

    op: WriteOp
    source: str
    key: pa.Table | None


def poison_of(store: Store, job: JobDescriptor, work: InputRange, error: Exception) -> Poison | None:
    """The one row of `work`; None when there is no row at its offset, or it takes back a row that was taken in."""
    source, bucket, offset = next(
        (table, bucket, end - 1)
        for table, ends in work.stop.items()
        for bucket, end in ends.items()
        if end > work.start.get(table, {}).get(bucket, 0)
    )
    table = store.table(source)
    rows = table.scan(start={bucket: offset}, stop={bucket: offset + 1}, metadata=True, as_of=work.as_of).read_all()
    if rows.num_rows == 0:
        return None
    (row,) = rows.to_pylist()
    change = row.get("_change_type", "+A")
    if change in ("-U", "-D"):
        return None
    text = json.dumps({name: value for name, value in row.items() if name not in _METADATA}, default=str, ensure_ascii=False)
    values = (job.name, job.epoch, source, bucket.partition, bucket.bucket, offset, change, reason_of(error), text)
    listed = {name: pa.array([value], _TYPES[kind]) for (name, kind), value in zip(_COLUMNS.items(), values, strict=True)}
    key = rows.select(list(table.descriptor.primary_key)) if table.descriptor.has_primary_key else None
    return Poison(WriteOp(quarantine_table(job), "append", pa.table(listed)), source, key)


def reason_of(error: Exception) -> str:
    """What went wrong, without DuckDB's picture of its generated SQL."""
    return str(error).partition("\n\nLINE ")[0]


class OpenKeys:
    """Keys of primary-key sources whose present row is in quarantine, as of a job's offsets. Rebuilt from quarantine and changelog."""

    def __init__(self, store: Store, job: JobDescriptor, plan: JobPlan, offsets: Mapping[str, Offsets], epochs: tuple[int, ...]) -> None:
        self._store = store
        self._keys: dict[str, pa.Table] = {}
        sources = {scan.table.name: scan.table for scan in scans(plan.root) if scan.table.has_primary_key}
        found = quarantined(store, job, epochs) if sources else {}
        for name in sources.keys() & found.keys():
            key = list(sources[name].primary_key)
            changes = store.table(name).scan(key, stop=offsets.get(name, {}), metadata=True).read_all()
            newest = changes.take(_numbered(changes, key).group_by(key, use_threads=False).aggregate([("__number", "max")])["__number_max"])
            is_open = pc.and_(pc.invert(is_kept(newest, found[name])), pc.invert(pc.is_in(newest["_change_type"], TAKEN_BACK)))
            self._keys[name] = newest.filter(is_open).select(key)

    def add(self, poison: Poison) -> None:
        """A key of its source is open from this poison row on."""
        if poison.key is not None:
            held = self._keys.get(poison.source)
            self._keys[poison.source] = poison.key if held is None else pa.concat_tables([held, poison.key.cast(held.schema)])

    def ended(self, source: str, work: InputRange) -> tuple[pa.BooleanArray, pa.Table] | None:
        """For each row of `work`, whether it stays, and the keys whose row in quarantine ends in it; None when nothing is left out."""
        keys = self._keys.get(source)
        if keys is None or keys.num_rows == 0:
            return None
        stop = {bucket: end for bucket, end in work.stop.get(source, {}).items() if end > work.start.get(source, {}).get(bucket, 0)}
        start = {bucket: work.start.get(source, {}).get(bucket, 0) for bucket in stop}
        names = keys.column_names
        changes = self._store.table(source).scan(names, start=start, stop=stop, metadata=True, as_of=work.as_of).read_all()
        touched = _numbered(changes, names).join(keys, names, join_type="left semi", use_threads=False)
        first = touched.group_by(names, use_threads=False).aggregate([("__number", "min")])["__number_min"]
        gone = first.filter(pc.is_in(changes["_change_type"].take(first), TAKEN_BACK))
        kept = np.ones(changes.num_rows, dtype=bool)
        kept[gone.to_numpy()] = False
        return pa.array(kept), changes.take(gone).select(names)

    def close(self, source: str, ended: pa.Table) -> None:
        """Keys of a source are open no more."""
        self._keys[source] = self._keys[source].join(ended, ended.column_names, join_type="left anti", use_threads=False)


def _numbered(rows: pa.Table, names: list[str]) -> pa.Table:
    return rows.select(names).append_column("__number", pa.array(np.arange(rows.num_rows)))


def quarantined(store: Store, job: JobDescriptor, epochs: tuple[int, ...]) -> Mapping[str, pa.Table]:
    """Source table -> the places (PLACE) of its rows that the job's definitions of these epochs left out."""
    name = quarantine_table(job)
    if name not in store.tables():
        return {}
    table = store.table(name)
    if gaps := gaps_of(table, {}, table.offsets()):
        raise InputGone(
            f"{expired(name, gaps)}: which rows job {job.name} left out is not known any more",
            where=f"job {job.name}",
            next_step=f"ALTER TABLE {name} SET ('table.log.ttl' = '-1') keeps the others.",
        )
    rows = table.scan(["job", "epoch", "source", *PLACE]).read_all()
    of_job = pc.and_(pc.equal(rows["job"], job.name), pc.is_in(rows["epoch"], pa.array(epochs, pa.int32())))
    rows = rows.filter(of_job)
    return {source: rows.filter(pc.equal(rows["source"], source)).select(PLACE) for source in pc.unique(rows["source"]).to_pylist()}


def next_epoch(store: Store, job: JobDescriptor) -> int:
    """The first epoch of a new job: behind those of dropped jobs of its name, whose rows in quarantine are not its own."""
    name = quarantine_table(job)
    if name not in store.tables():
        return 0
    rows = store.table(name).scan(["job", "epoch"]).read_all()
    newest = pc.max(rows.filter(pc.equal(rows["job"], job.name))["epoch"]).as_py()
    return 0 if newest is None else newest + 1


def without(rows: pa.Table, places: pa.Table) -> pa.Table:
    """Scanned rows (with metadata _partition, _bucket, _log_offset) without those in quarantine, in their order."""
    return rows.filter(is_kept(rows, places))


def is_kept(rows: pa.Table, places: pa.Table) -> pa.BooleanArray:
    """For each scanned row, whether it is not in quarantine."""
    key = ["_partition", "_bucket", "_log_offset"]
    numbered = _numbered(rows, key)
    gone = places.rename_columns(key).cast(numbered.select(key).schema)
    found = numbered.join(gone, key, join_type="left semi", use_threads=False)["__number"].to_numpy()
    kept = np.ones(rows.num_rows, dtype=bool)
    kept[found] = False
    return pa.array(kept)
