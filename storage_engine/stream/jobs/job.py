"""Job: a continuous statement as the store keeps it (object kind "job"), and its progress (owner "job:NAME").

Holds: a definition is known by its name and `epoch`: an upgrade raises the epoch, and a runner whose epoch is not the recorded one
       commits nothing (upgrade.py). How far a job has read is in its progress only, which commits with what it wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from storage_engine.api import JOB_PREFIX
from storage_engine.client.store import Store
from storage_engine.errors import StatementRefused, UnknownTable
from storage_engine.schema.descriptor import Offsets, TableBucket, TableDescriptor
from storage_engine.stream.dialect.syntax import parse_select, text_of
from storage_engine.stream.functions.python_functions import FunctionDefinition
from storage_engine.stream.jobs.options import JobOptions, parse_options
from storage_engine.stream.operators.job_plan import JobPlan
from storage_engine.stream.plan.tree import ViewDefinition
from storage_engine.stream.planning.bind_lookup import NDU_OPTION
from storage_engine.stream.planning.catalog import StoreCatalog, view_from_json, view_to_json
from storage_engine.stream.planning.planner import ENFORCER_OPTION, plan_insert

KIND = "job"
State = Literal["RUNNING", "PAUSED", "STOPPED", "FAILED", "FINISHED", "DROPPING"]
"""RUNNING: workers run it. PAUSED, STOPPED: by a user, until RESUME JOB or the same statement again; tables may be altered under a
stopped job, not under a paused one. FAILED: by an error (last_error); RESUME JOB when its cause is mended. DROPPING: a DROP
JOB was begun; said again, it is finished (operate.py)."""

Start = Literal["", "keep-position", "fresh"]

PLANNING_OPTIONS = (ENFORCER_OPTION, NDU_OPTION)
"""Session settings that are part of a job's meaning and stay with it. Those of options.py stay with it too, and may change."""


@dataclass(frozen=True)
class JobDescriptor:
    """One job.

    kind       "insert" (INSERT INTO ... SELECT) or "view" (a materialized view; `sink` is its backing table)
    refresh_s  view: seconds between refreshes, None by hand, 0.0 as soon as there is input; insert: 0.0
    targets    sink columns the job writes; `kept` those of them that hold its state
    starts     where sources begin that are not read from their beginning, as of the submission
    functions  the users' functions it calls, as they were when it was submitted
    known      table -> its columns when the job was submitted: what `*` means in the SELECT
    table_ids  sources and sink -> which table of that name it was; empty of a job stored before they were recorded
    epoch      how often the job was upgraded; `start`: how the newest upgrade begins
    state_epoch   the epoch whose state tables it uses: an upgrade that keeps its position keeps them
    state_tables  their names; None: of a job stored before they were recorded
    earlier    its earlier definitions whose rows may be in the sink, oldest first
    """

    name: str
    sink: str
    select: str
    text: str
    kind: Literal["insert", "view"] = "insert"
    database: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    views: Mapping[str, ViewDefinition] = field(default_factory=dict)
    functions: Mapping[str, FunctionDefinition] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refresh_s: float | None = 0.0
    starts: Mapping[str, Offsets] = field(default_factory=dict)
    state: State = "RUNNING"
    last_error: str = ""
    submitted_ms: int = 0
    epoch: int = 0
    state_epoch: int = 0
    start: Start = ""
    state_tables: tuple[str, ...] | None = None
    earlier: tuple[JobDescriptor, ...] = ()
    layout: int = 0
    table_ids: Mapping[str, int] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return owner_of(self.name)

    @property
    def state_prefix(self) -> str:
        """What the names of its state tables carry."""
        return f"{state_name(self.name)}__{self.state_epoch}" if self.state_epoch else state_name(self.name)

    @property
    def options(self) -> JobOptions:
        return parse_options(self.settings, f"job {self.name}")

    def is_same_definition(self, other: JobDescriptor) -> bool:
        """True when both do the same: spelling and white space aside."""
        return self._definition() == other._definition()

    def _definition(self) -> tuple[Any, ...]:
        views = tuple(sorted((name, canonical(view.sql), view.columns) for name, view in self.views.items()))
        functions = tuple(sorted(self.functions.items()))
        planning = tuple(sorted((key, value) for key, value in self.settings.items() if key in PLANNING_OPTIONS))
        return (self.kind, self.sink, self.targets, canonical(self.select), self.database, planning, views, functions)

    def to_json(self) -> dict[str, Any]:
        value = asdict(replace(self, starts={}, earlier=()))
        value["settings"] = dict(self.settings)
        value["starts"] = {table: {str(bucket): n for bucket, n in offsets.items()} for table, offsets in self.starts.items()}
        value["known"] = {table: list(columns) for table, columns in self.known.items()}
        value["functions"] = {name: item.to_json() for name, item in self.functions.items()}
        value["views"] = {name: view_to_json(view) for name, view in self.views.items()}
        value["earlier"] = [job.to_json() for job in self.earlier]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> JobDescriptor:
        known = dict(value)
        written = known.get("starts", {})
        known["starts"] = {table: {TableBucket.parse(text): n for text, n in offsets.items()} for table, offsets in written.items()}
        known["targets"], known["kept"] = tuple(known["targets"]), tuple(known["kept"])
        known["known"] = {table: tuple(columns) for table, columns in known.get("known", {}).items()}
        known["views"] = {name: view_from_json(view) for name, view in known["views"].items()}
        known["earlier"] = tuple(cls.from_json(job) for job in known.get("earlier", ()))
        known["state_tables"] = tuple(known["state_tables"]) if known.get("state_tables") is not None else None
        known["functions"] = {name: FunctionDefinition.from_json(item) for name, item in known.get("functions", {}).items()}
        return cls(**known)


def owner_of(job: str) -> str:
    """The owner of a job's progress."""
    return f"{JOB_PREFIX}{job}"


def state_name(job: str) -> str:
    """A job's name as a part of a table's name."""
    return re.sub(r"\W", "_", job)


def written_name(job: str) -> str:
    """A job's name as a statement takes it: bare where it can be.

    >>> written_name("db.view"), written_name("two words")
    ('db.view', "'two words'")
    """
    return job if re.fullmatch(r"[^\W\d]\w*([.-]\w+)*", job) else "'" + job.replace("'", "''") + "'"


def canonical(select: str) -> str:
    """A SELECT without comments and differences of spelling."""
    tree = parse_select(select).copy()
    for node in tree.walk():
        node.comments = None
    return text_of(tree)


def plan_job(store: Store, job: JobDescriptor, *, altered: TableDescriptor | None = None) -> JobPlan:
    """The plan of a stored job, against the store's tables as they are, one of them perhaps as `altered`.

    Errors: StatementRefused, UnknownTable when it no longer fits them; also when a source or the sink is another table of the same name.
    """
    catalog = StoreCatalog(store, job.views, job.known, altered, job.functions)
    sink = altered if altered is not None and altered.name == job.sink else store.describe(job.sink)
    plan = plan_insert(
        catalog, sink, job.targets, job.select,
        job=job.state_prefix, default_database=job.database, settings=job.settings, layout=job.layout,
    )  # fmt: skip
    check_same_tables(job, {name: found.table_id for name in job.table_ids if (found := catalog.table(name)) is not None})
    return replace(plan, starts=job.starts)


def check_same_tables(job: JobDescriptor, present: Mapping[str, int]) -> None:
    """Errors: StatementRefused when a table of the job was dropped and another one has its name: offsets and state are of the first."""
    for name, table_id in job.table_ids.items():
        if present.get(name, table_id) != table_id:
            stops = "DROP MATERIALIZED VIEW" if job.kind == "view" else "STOP JOB"
            raise StatementRefused(
                f"{name} is another table than the one that job {job.name} was submitted for, which was dropped",
                where=f"job {job.name}",
                next_step=f"{stops} {written_name(job.name)}; DROP JOB {written_name(job.name)}, and submit it again.",
            )


def load_jobs(store: Store) -> dict[str, JobDescriptor]:
    """All jobs, by name."""
    return {name: JobDescriptor.from_json(value) for name, value in sorted(store.objects(KIND).items())}


def load_job(store: Store, name: str) -> JobDescriptor:
    """One job. Errors: UnknownTable when there is none of that name."""
    jobs = load_jobs(store)
    if name not in jobs:
        raise UnknownTable(f"there is no job {name}", where="jobs", next_step=f"SHOW JOBS lists them: {', '.join(jobs) or 'none'}.")
    return jobs[name]


def save_job(store: Store, job: JobDescriptor) -> None:
    """Store a job's definition, in place of an earlier one of that name."""
    store.put_object(KIND, job.name, job.to_json())


def set_state(store: Store, name: str, state: State, last_error: str = "") -> None:
    """Change a job's state; its definition stays."""
    save_job(store, replace(load_job(store, name), state=state, last_error=last_error))
