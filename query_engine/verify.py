"""Verify: the proof that stream and batch agree. The batch is recomputed over a job's recorded offsets and compared row by row.

A job's output and its input offsets commit together, so at any version of the store its sink must equal the batch over these
offsets, for open partitions too. Version and offsets are pinned first; both sides are then read at them, while the job runs on.
Input that has expired is read from the lake, or from current rows, where they tell it; else the proof is refused, and says why.
Holds: a comparison changes nothing. A repair commits only if the job has not moved since it was compared, and writes nothing that it
       could not compute from the whole input: where a proof is refused, or looked-up tables have changed since, there is no repair.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from query_engine.engine import QueryEngine
from storage_engine import Offsets, Progress, Store, TableDescriptor, WriteOp
from storage_engine.errors import InvalidPartition, OffsetOutOfRange, ProgressConflict, RetriableError, StatementRefused, UserError
from storage_engine.lake import LakeHistory
from storage_engine.stream.functions.bitmaps import open_connection
from storage_engine.stream.jobs.held import FIRST_VERSION, InputGone, expired, gaps_of
from storage_engine.stream.jobs.job import JobDescriptor, load_jobs, plan_job
from storage_engine.stream.jobs.quarantine import reason_of
from storage_engine.stream.jobs.upgrade import epoch_of
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.plan.tree import lookups
from storage_engine.stream.run.batch import batch_select, earlier_rows
from storage_engine.stream.run.history import Lake

_TRIES = 50
_SAMPLE_ROWS = 5


@dataclass(frozen=True)
class VerifyReport:
    """One job's proof at one version of the store.

    rows_compared   rows the batch gives, and rows of the sink that it does not give
    rows_differing  rows that differ in a column of the job, are missing, or should not be there
    rows_earlier    rows that are as the job's statement before its last upgrade left them: an upgrade that keeps its position does not
                    touch what does not change. They do not count as differing; a repair rewrites them
    rows_quarantined  rows of the input that are in quarantine, and left out on both sides
    sample          some differing rows: key columns, and each differing column as "batch" and "stored" values
    notes           what limits the proof
    refused         why nothing was proved, "" when it was: input that has expired, partitions without a row
    """

    table: str
    job: str
    version: int
    rows_compared: int
    rows_differing: int
    sample: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    rows_earlier: int = 0
    rows_quarantined: int = 0
    refused: str = ""
    differences: pa.Table | None = field(default=None, repr=False, compare=False)

    @property
    def holds(self) -> bool:
        return self.rows_differing == 0 and not self.refused


def verify(
    store: Store,
    engine: QueryEngine | None,
    table: str,
    partitions: Sequence[str] | None = None,
    *,
    lake: Lake | None = None,
) -> list[VerifyReport]:
    """Prove a table: one report per job that writes it.

    engine, lake  where rows of tiered tables are that have expired in the store; None: not at hand
    partitions  values of the table's partition column (or of the first key column that names days in a view); None: all rows. A day may be
                written yyyy-MM-dd or yyyyMMdd, however the column has it
    Errors: UnknownTable; UserError when no job writes the table; InvalidPartition for a value that is no day and that no row has.
    """
    asked = _Asked(tuple(partitions or ()), lake or lake_of(store, engine))
    proved = [_verify(store, job, _pin(store, job), asked) for job in jobs_of(store, table)]
    absent = [name for name in asked.partitions if all(name in gone for _, gone in proved)]
    reports = [report for report, _ in proved]
    if not absent or any(report.refused for report in reports):
        return reports
    for name in absent:
        if len(spellings(name)) == 1:
            raise InvalidPartition(
                f"no row of {table} has the partition {name}, in the stream or in the batch",
                where=f"verify {table}",
                next_step="Days are written 2017-01-01 or 20170101, other partitions as in the column.",
            )
    what = f"no row of {', '.join(absent)} on either side: nothing was compared"
    refused = what if len(absent) == len(asked.partitions) else ""
    return [replace(report, notes=(*report.notes, what), refused=refused) for report in reports]


def repair(
    store: Store,
    engine: QueryEngine | None,
    table: str,
    partitions: Sequence[str] | None = None,
    *,
    lake: Lake | None = None,
) -> int:
    """Write what the batch says into the rows that differ; the number of rows written or cleared.

    Errors: StatementRefused for a log table or an aggregation table, whose rows cannot be overwritten; where the proof is refused; where
    a looked-up table has changed since. Nothing is written then, for none of the table's jobs.
    """
    asked = _Asked(tuple(partitions or ()), lake or lake_of(store, engine))
    jobs = jobs_of(store, table)
    if len(jobs) > 1:
        for job in jobs:
            _check_repair(store, job, _verify(store, job, _pin(store, job), asked, spares_earlier=False)[0])
    return sum(_repair(store, job, asked) for job in jobs)


def lake_of(store: Store, engine: QueryEngine | None) -> Lake | None:
    """The lake that a query engine reads."""
    return None if engine is None else LakeHistory(store, engine.lake_root)


def spellings(partition: str) -> tuple[str, ...]:
    """The names that a partition may have: a day is written with dashes or without.

    >>> spellings("2017-01-31"), spellings("20170131"), spellings("a")
    (('2017-01-31', '20170131'), ('20170131', '2017-01-31'), ('a',))
    """
    for form, other in (("%Y-%m-%d", "%Y%m%d"), ("%Y%m%d", "%Y-%m-%d")):
        try:
            day = dt.datetime.strptime(partition, form)  # noqa: DTZ007  # a day, in no zone
        except ValueError:
            continue
        if day.strftime(form) == partition:
            return partition, day.strftime(other)
    return (partition,)


@dataclass(frozen=True)
class _Asked:
    """What is to be proved: some partitions (none: all rows), with what lake at hand."""

    partitions: tuple[str, ...]
    lake: Lake | None

    @property
    def names(self) -> frozenset[str]:
        """The partitions under every name that they may have."""
        return frozenset(name for partition in self.partitions for name in spellings(partition))

    def of(self, rows: pa.Table, sink: TableDescriptor) -> pa.Table:
        """The rows of the partitions."""
        if not self.partitions:
            return rows
        return rows.filter(pc.is_in(pc.cast(rows[partition_column(sink)], pa.string()), pa.array(sorted(self.names), pa.string())))

    def absent(self, sink: TableDescriptor, *sides: pa.Table) -> frozenset[str]:
        """The partitions of which no side has a row."""
        if not self.partitions:
            return frozenset()
        found = {name for rows in sides for name in pc.unique(pc.cast(rows[partition_column(sink)], pa.string())).to_pylist()}
        return frozenset(partition for partition in self.partitions if found.isdisjoint(spellings(partition)))


def jobs_of(store: Store, table: str) -> list[JobDescriptor]:
    """The jobs that write a table; one that is being dropped proves nothing. Errors: UnknownTable; UserError when there are none."""
    store.describe(table)
    jobs = [job for job in load_jobs(store).values() if job.sink == table and job.state != "DROPPING"]
    if not jobs:
        hint = "Only tables that SQL fills can be recomputed; SHOW JOBS lists the jobs."
        raise UserError(f"no job writes {table}", where="verify", next_step=hint)
    return jobs


@dataclass(frozen=True)
class _Pinned:
    """A version of the store, and the offsets the job had reached at it."""

    version: int
    offsets: Mapping[str, Offsets]
    n_quarantined: int = 0


def _pin(store: Store, job: JobDescriptor) -> _Pinned:
    """Progress only moves forward: the same before and after a version was read, it was the same at that version.

    Errors: RetriableError when the recorded progress belongs to another definition of the job: its upgrade is under way.
    """
    for _ in range(_TRIES):
        before = store.progress(job.owner).get(job.owner)
        version = store.version()
        after = store.progress(job.owner).get(job.owner)
        if epoch_of(after) != job.epoch:
            hint = "A worker that runs takes it up within seconds; then try again."
            raise RetriableError(f"job {job.name} is being upgraded", where=f"job {job.name}", next_step=hint)
        offsets = after.offsets if after else {}
        if (before.offsets if before else {}) == offsets and epoch_of(before) == epoch_of(after):
            return _Pinned(version, offsets, int(after.detail.get("n_quarantined", 0)) if after else 0)
    raise RetriableError(f"job {job.name} commits too fast to be pinned", where=job.name, next_step="Try again when it has caught up.")


def _verify(
    store: Store, job: JobDescriptor, pinned: _Pinned, asked: _Asked, *, spares_earlier: bool = True
) -> tuple[VerifyReport, frozenset[str]]:
    """One job's proof, and the partitions of which neither side has a row."""
    plan = plan_job(store, job)
    sink = plan.sink
    notes = [*changed_lookups(store, job, plan).values()]
    report = VerifyReport(
        sink.name, job.name, pinned.version, 0, 0, notes=tuple(notes), partitions=asked.partitions, rows_quarantined=pinned.n_quarantined
    )
    column = partition_column(sink) if asked.partitions else ""
    reach = {"lake": asked.lake, "column": column, "partitions": asked.names}
    n_earlier = 0
    try:
        batch = batch_select(store, job, offsets=pinned.offsets, at_version=pinned.version, **reach)
        expected = asked.of(batch, sink)
        if sink.has_primary_key:
            columns = list(dict.fromkeys([*sink.primary_key, *plan.targets]))
            actual = asked.of(store.table(sink.name).read(columns, at=pinned.version), sink)
            is_alone = set(columns) == set(sink.column_names) and len(jobs_of(store, sink.name)) == 1
            n_compared, differences = _compare_keyed(sink, columns, expected.select(columns), actual, is_alone=is_alone)
            if differences.num_rows and spares_earlier:
                n_found = differences.num_rows
                for earlier in earlier_rows(store, job, pinned.version, **reach):
                    differences = _differing_from_both(sink, columns, differences, asked.of(earlier, sink), actual)
                n_earlier = n_found - differences.num_rows
        else:
            columns = list(plan.targets)
            actual = asked.of(_sink_rows(store, sink, columns, pinned, asked), sink)
            n_compared, differences = _compare_bags(columns, expected.select(columns), actual)
    except InputGone as error:
        return replace(report, refused=error.what, notes=(*notes, f"{error.what}. {error.next_step}")), frozenset()
    except duckdb.Error as error:
        raise UserError(
            f"the statement of job {job.name} fails on its input: {reason_of(error)}",
            where=f"verify {sink.name}",
            next_step="If an earlier statement of the job took these rows, SET 'pipeline.upgrade' = 'replay' and submit the new one again.",
        ) from error
    proved = replace(
        report,
        rows_compared=n_compared,
        rows_differing=differences.num_rows,
        sample=tuple(_sample(differences)),
        rows_earlier=n_earlier,
        differences=differences,
    )
    return proved, asked.absent(sink, expected, actual)


def _sink_rows(store: Store, sink: TableDescriptor, columns: list[str], pinned: _Pinned, asked: _Asked) -> pa.Table:
    """The rows of a log that jobs write, what has expired of it from the lake. Errors: InputGone when the lake does not have it."""
    table = store.table(sink.name)
    stop = table.offsets(at_version=pinned.version)
    if asked.partitions and sink.partition_keys:
        stop = {bucket: end for bucket, end in stop.items() if bucket.partition in asked.names}
    gaps = gaps_of(table, {}, stop)
    held = table.scan(columns, stop=stop).read_all()
    if not gaps:
        return held
    ranges = {gap.bucket: (gap.start, gap.held) for gap in gaps}
    older = asked.lake.log_rows(sink.name, columns, ranges) if asked.lake is not None and sink.is_tiered else None
    if older is None or older.num_rows != sum(gap.n_rows for gap in gaps):
        hint = f"'table.log.ttl' of {sink.name} says how long its rows are kept."
        raise InputGone(f"{expired(sink.name, gaps)}: they cannot be compared", where=f"verify {sink.name}", next_step=hint)
    return pa.concat_tables([older.select(columns).cast(held.schema), held])


def _differing_from_both(sink: TableDescriptor, columns: list[str], differences: pa.Table, earlier: pa.Table, actual: pa.Table) -> pa.Table:
    """Those of the differences that the statement before does not explain either. It gives no value for a column it did not write."""
    for name in columns:
        if name not in earlier.column_names:
            earlier = earlier.append_column(name, pa.nulls(earlier.num_rows, sink.column(name).arrow.type))
    _, from_earlier = _compare_keyed(sink, columns, earlier.select(columns), actual, is_alone=False)
    con = open_connection(n_threads=2)
    try:
        con.register("d", differences)
        con.register("b", from_earlier)
        on = " AND ".join(f'd."{key}" = b."{key}"' for key in sink.primary_key)
        return con.execute(f"SELECT d.* FROM d SEMI JOIN b ON {on}").to_arrow_table()
    finally:
        con.close()


def partition_column(sink: TableDescriptor) -> str:
    """The column whose values name a table's partitions: the partition key, else the one that 'asset.partitions' names.

    Errors: UserError when the table has neither.
    """
    if sink.partition_keys:
        return sink.partition_keys[0]
    declared = sink.options.get("asset.partitions", "")
    name = declared.partition("(")[2].rstrip(") ")
    if name in sink.column_names:
        return name
    if "day" in sink.column_names:
        return "day"
    raise UserError(f"{sink.name} has no partitions", where="verify", next_step="Verify the whole table: leave the partitions out.")


def _compare_keyed(
    sink: TableDescriptor, columns: list[str], expected: pa.Table, actual: pa.Table, *, is_alone: bool
) -> tuple[int, pa.Table]:
    """Rows by key. A stored row that the batch does not give is right when the job's columns are null in it: another job's row.

    is_alone  the job writes every column, and no other job writes the table: every row is its own
    """
    keys = list(sink.primary_key)
    values = [name for name in columns if name not in keys]
    con = open_connection(n_threads=2)
    try:
        con.register("e", expected)
        con.register("a", actual)
        on = " AND ".join(f'e."{key}" = a."{key}"' for key in keys)
        same = " AND ".join(_same(sink, name) for name in values) or "TRUE"
        empty = " AND ".join(f'a."{name}" IS NULL' for name in values) or ("FALSE" if is_alone else "TRUE")
        key = keys[0]
        listed = [f'COALESCE(e."{name}", a."{name}") AS "{name}"' for name in keys]
        listed += [f'e."{name}" AS "{name}|batch", a."{name}" AS "{name}|stored"' for name in values]
        state = f"""CASE WHEN a."{key}" IS NULL THEN 'missing' WHEN e."{key}" IS NULL THEN 'extra' ELSE 'differs' END AS "_problem" """
        source = f"FROM e FULL OUTER JOIN a ON {on}"
        wrong = f"""(a."{key}" IS NULL OR (e."{key}" IS NULL AND NOT ({empty})) OR (e."{key}" IS NOT NULL AND NOT ({same})))"""
        n_other = con.execute(f'SELECT count(*) {source} WHERE e."{key}" IS NULL AND ({empty})').fetchall()[0][0]
        n_all = con.execute(f"SELECT count(*) {source}").fetchall()[0][0]
        differences = con.execute(f"SELECT {', '.join([*listed, state])} {source} WHERE {wrong}").to_arrow_table()
        return int(n_all) - int(n_other), differences
    finally:
        con.close()


def _same(sink: TableDescriptor, name: str) -> str:
    """Two values are the same; bitmaps are when they have the same members, however their bytes are laid out."""
    left, right = f'e."{name}"', f'a."{name}"'
    if sink.column(name).type == "BYTES" and sink.aggregate_function(name) == "rbm32":
        members = f"rb_cardinality(rb_andnot({left}, {right})) = 0 AND rb_cardinality(rb_andnot({right}, {left})) = 0"
        return f"(({left} IS NULL AND {right} IS NULL) OR COALESCE({members}, FALSE))"
    return f"{left} IS NOT DISTINCT FROM {right}"


def _compare_bags(columns: list[str], expected: pa.Table, actual: pa.Table) -> tuple[int, pa.Table]:
    """Rows without a key: each as often as the batch gives it."""
    con = open_connection(n_threads=2)
    try:
        con.register("e", expected)
        con.register("a", actual)
        listed = ", ".join(f'"{name}"' for name in columns)
        counted = (
            f'SELECT {listed}, sum("|n") AS "|surplus" FROM (SELECT {listed}, 1 AS "|n" FROM a UNION ALL SELECT {listed}, -1 FROM e) '
            f'GROUP BY ALL HAVING sum("|n") <> 0'
        )  # names that no column of the table has
        problem = "CASE WHEN \"|surplus\" < 0 THEN 'missing' ELSE 'extra' END AS \"_problem\""
        differences = con.execute(f'SELECT {listed}, {problem} FROM ({counted}), range(CAST(abs("|surplus") AS BIGINT))').to_arrow_table()
        return max(expected.num_rows, actual.num_rows), differences
    finally:
        con.close()


def _sample(differences: pa.Table) -> list[dict[str, Any]]:
    return [{name: str(value) for name, value in row.items()} for row in differences.slice(0, _SAMPLE_ROWS).to_pylist()]


def changed_lookups(store: Store, job: JobDescriptor, plan: JobPlan) -> dict[str, str]:
    """Table -> a note, for each looked-up table that changed after the job had begun: rows joined before that saw it as it was then.

    A row that the job itself makes where a key is missing is no change: whoever looks it up again finds it.
    """
    recorded = store.progress(job.owner).get(job.owner)
    begun = int(recorded.detail.get(FIRST_VERSION, -1)) if recorded else -1
    makes = {join.table.name for join in lookups(plan.root) if join.inserts_missing}
    notes = {}
    for name in plan.lookup_tables:
        table = store.table(name)
        try:
            start = table.offsets(at_version=begun) if begun >= 0 else "earliest"
            first = {} if start == "earliest" else {bucket: start.get(bucket, 0) for bucket in table.offsets()}
            changes = table.scan([table.descriptor.column_names[0]], start=first, metadata=True).read_all()
        except OffsetOutOfRange:
            notes[name] = f"the changelog of {name} has expired: whether it changed since the job began is not known"
            continue
        if begun < 0:  # of a job that began before its first version was recorded
            changes = changes.filter(pc.greater_equal(changes["_commit_timestamp"].cast(pa.int64()), job.submitted_ms))
        kinds = pa.array(["+U", "-D"] if name in makes else ["+I", "+U", "-D"])
        n_changed = pc.sum(pc.is_in(changes["_change_type"], kinds)).as_py() or 0
        if n_changed:
            notes[name] = (
                f"{name} has changed since the job began ({n_changed} rows came, were updated or deleted): "
                "rows joined before that keep the values of their time"
            )
    return notes


def _repair(store: Store, job: JobDescriptor, asked: _Asked) -> int:
    for _ in range(_TRIES):
        pinned = _pin(store, job)
        report, _absent = _verify(store, job, pinned, asked, spares_earlier=False)
        _check_repair(store, job, report)
        if report.holds:
            return 0
        plan = plan_job(store, job)
        still = Progress(job.owner, pinned.offsets, pinned.offsets, _detail(store, job))
        try:
            store.commit(_corrections(plan, report), (still,))
        except ProgressConflict:
            continue
        return report.rows_differing
    hint = "STOP JOB, repair, then submit it again."
    raise RetriableError(f"job {job.name} commits too fast to be repaired", where=job.name, next_step=hint)


def _check_repair(store: Store, job: JobDescriptor, report: VerifyReport) -> None:
    """Errors: StatementRefused where the batch is no judge of the rows."""
    if report.refused:
        raise StatementRefused(
            f"{report.refused}; nothing was repaired", where=f"repair {report.table}", next_step="Rows that the job wrote stay as they are."
        )
    changed = changed_lookups(store, job, plan_job(store, job)) if report.rows_differing else {}
    if changed:
        raise StatementRefused(
            f"{next(iter(changed.values()))}; a repair would give them the values of now, so nothing was repaired",
            where=f"repair {report.table}",
            next_step="SET 'pipeline.upgrade' = 'replay' and submit the job again, to join all of its input anew.",
        )


def _detail(store: Store, job: JobDescriptor) -> Mapping[str, Any]:
    recorded = store.progress(job.owner).get(job.owner)
    return recorded.detail if recorded else {}


def _corrections(plan: JobPlan, report: VerifyReport) -> list[WriteOp]:
    sink = plan.sink
    if not sink.has_primary_key or sink.merge_engine != "last_row":
        kind = "a log table" if not sink.has_primary_key else f"a table of merge engine {sink.merge_engine}"
        raise StatementRefused(
            f"{sink.name} is {kind}: its rows cannot be overwritten", where="repair", next_step="Drop its partition and replay the job."
        )
    assert report.differences is not None
    differences = report.differences
    keys = list(sink.primary_key)
    values = [name for name in plan.targets if name not in keys]
    is_extra = pc.equal(differences["_problem"], "extra")
    wrong, extra = differences.filter(pc.invert(is_extra)), differences.filter(is_extra)
    ops = []
    if wrong.num_rows:
        rows = wrong.select([*keys, *(f"{name}|batch" for name in values)]).rename_columns([*keys, *values])
        ops.append(WriteOp(sink.name, "upsert", rows, (*keys, *values)))
    if extra.num_rows:
        ops.append(WriteOp(sink.name, "delete", extra.select(keys), tuple(values) or None))
    return ops
