"""Session: SQL text against one store: tables, views, settings, jobs. Queries are answered by who was injected for them.

Holds: statements run one after another, the first that fails ends the run; settings and temporary views live as long as the
       session, everything else is in the store.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from storage_engine.client import groups
from storage_engine.errors import AlreadyExists, InvalidOption, StatementRefused, TableAltered, UnknownTable
from storage_engine.schema import evolve
from storage_engine.schema import statements as st
from storage_engine.schema.ddl import DEFAULT_DATABASE, parse_statements, render_create_table
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.statement_sets import Explain, StatementSet
from storage_engine.schema.validate import partition_of
from storage_engine.stream.jobs.dependents import check_dependents, check_droppable
from storage_engine.stream.jobs.job import JobDescriptor, load_job, state_name
from storage_engine.stream.jobs.operate import ANSWERS as JOB_ANSWERS
from storage_engine.stream.jobs.options import JOB_SETTINGS, check_value, parse_options
from storage_engine.stream.jobs.submit import submit
from storage_engine.stream.plan.tree import ViewDefinition
from storage_engine.stream.planning.bind import INERT_TABLE_HINTS
from storage_engine.stream.planning.bind_lookup import NDU_OPTION
from storage_engine.stream.planning.catalog import StoreCatalog, view_from_json, view_to_json
from storage_engine.stream.planning.computed_columns import types_of
from storage_engine.stream.planning.explain import explain
from storage_engine.stream.planning.planner import ENFORCER_OPTION, plan_insert, plan_select
from storage_engine.stream.run.history import Lake, StoreOnly
from storage_engine.stream.session import materialized_views, reports
from storage_engine.stream.session.change_rows import delete_rows, update_rows
from storage_engine.stream.session.function_statements import ANSWERS as FUNCTION_ANSWERS
from storage_engine.stream.session.function_statements import Functions
from storage_engine.stream.session.materialized_views import check_is_no_view
from storage_engine.stream.session.once import insert_constants, insert_once, is_of_constants
from storage_engine.stream.session.user_statements import ANSWERS as USER_ANSWERS

if TYPE_CHECKING:
    from storage_engine.client.store import Store

SETTINGS: dict[str, tuple[str, ...] | None] = {
    "pipeline.name": None,
    "execution.runtime-mode": ("streaming", "batch"),
    ENFORCER_OPTION: ("ERROR", "DROP"),
    NDU_OPTION: ("TRY_RESOLVE", "IGNORE"),
    **JOB_SETTINGS,
}
"""Settings with an effect, and their values (None: any text)."""

ONLY_DEFAULT = {
    "table.local-time-zone": (
        ("UTC", "ETC/UTC", "GMT", "Z", "+00:00", "GMT+00:00"),
        "Times are UTC here: leave it out, and write CONVERT_TZ(time, 'UTC', zone) where a time of another zone is meant.",
    ),
    "table.exec.state.ttl": (
        ("0", "0 MS", "0MS", "0 S", "0S"),
        "State is kept as long as its rows count, so that no answer changes: leave it out. Windows, and joins within an interval, over "
        "logs with a WATERMARK forget what is final.",
    ),
}
"""Settings of Flink that would change answers, and have one value here; what to do instead of another one."""

INERT_SETTINGS = (
    "table.exec.mini-batch.enabled",
    "table.exec.async-lookup.",
    "table.exec.sink.upsert-materialize",
    "table.optimizer.",
    "parallelism.default",
    "execution.checkpointing.",
    "restart-strategy",
    "sql-client.",
    "state.",
)
"""Settings of a Flink cluster that are accepted, with a notice that they do nothing here."""

AlterTable = st.AlterTableAddColumn | st.AlterTableRenameColumn | st.AlterTableDropColumns | st.AlterTableModifyColumns | st.AlterTableSet
_ALTER_ATTEMPTS = 10


@dataclass(frozen=True)
class Result:
    """What a statement did: a message for people, and rows if it answers with rows."""

    message: str
    rows: pa.Table | None = None


class SqlSession:
    """Runs statements against a store.

    query   answers SELECT (the query engine), with the session's functions as `functions`; without it a SELECT is refused by name
    lake    what the lake holds of tiered tables: for statements that read what SELECT shows
    """

    def __init__(self, store: Store, query: Callable[..., Any] | None = None, lake: Lake | None = None) -> None:
        self._store = store
        self._query = query
        self._lake = lake
        self._database = DEFAULT_DATABASE
        self._settings: dict[str, str] = {}
        self._views: dict[str, ViewDefinition] = {}
        self._functions: Functions = {}
        self._databases: set[str] = set()  # those that were created here and have no table yet: a database is in the names of its tables

    def execute(self, text: str) -> list[Result]:
        """Run a text of statements. Errors: what the failing statement raises; those before it have taken effect."""
        return [self._run(statement) for statement in parse_statements(text, self._database)]

    def _run(self, statement: st.Statement) -> Result:
        try:
            return self._handle(statement)
        except (StatementRefused, UnknownTable) as error:
            if "line" in error.where:
                raise
            raise type(error)(error.what, where=f"{error.where}, statement at line {statement.line}", next_step=error.next_step) from error

    def _handle(self, statement: st.Statement) -> Result:
        if (answer := USER_ANSWERS.get(type(statement))) is not None:
            return Result(*answer(self._store, statement))
        if (function_answer := FUNCTION_ANSWERS.get(type(statement))) is not None:
            return Result(*function_answer(self._store, self._functions, statement))
        if (job_answer := JOB_ANSWERS.get(type(statement))) is not None:
            return Result(job_answer(self._store, statement))
        handler = _HANDLERS.get(type(statement))
        if handler is None:
            raise StatementRefused(
                f"{type(statement).__name__} is not supported", where=f"line {statement.line}", next_step="Leave it out."
            )
        return handler(self, statement)

    # tables

    def _catalog(self) -> StoreCatalog:
        return StoreCatalog(self._store, self._views, functions=self._functions)

    def _create_table(self, statement: st.CreateTable) -> Result:
        if statement.descriptor.computed:
            types_of(self._catalog(), statement.descriptor, f"table {statement.descriptor.name}")
        self._store.backend.create_table(statement.descriptor, if_not_exists=statement.if_not_exists)
        return Result(f"table {statement.descriptor.name}")

    def _drop_table(self, statement: st.DropTable) -> Result:
        check_is_no_view(self._store, statement.name, f"line {statement.line}")
        check_droppable(self._store, statement.name)
        self._store.backend.drop_table(statement.name, if_exists=statement.if_exists)
        return Result(f"dropped {statement.name}")

    def _add_columns(self, statement: st.AlterTableAddColumn) -> Result:
        return self._alter(statement, lambda table: evolve.add_columns(table, statement.columns))

    def _rename_column(self, statement: st.AlterTableRenameColumn) -> Result:
        return self._alter(statement, lambda table: evolve.rename_column(table, statement.old, statement.new))

    def _drop_columns(self, statement: st.AlterTableDropColumns) -> Result:
        return self._alter(statement, lambda table: evolve.drop_columns(table, statement.columns))

    def _modify_columns(self, statement: st.AlterTableModifyColumns) -> Result:
        return self._alter(statement, lambda table: evolve.modify_columns(table, statement.columns))

    def _set_table_options(self, statement: st.AlterTableSet) -> Result:
        return self._alter(statement, lambda table: evolve.set_options(table, statement.options))

    def _alter(self, statement: AlterTable, change: Callable[[TableDescriptor], TableDescriptor]) -> Result:
        """Change a table by its present descriptor; when somebody else was faster, by the one that is present then."""
        for attempt in range(_ALTER_ATTEMPTS):
            current = self._store.describe(statement.name)
            # a backend that alters no table refuses by that name, whatever the change is
            wanted = change(current) if "alter_table" in self._store.capabilities else current
            check_dependents(self._store, current, wanted)
            try:
                self._store.backend.alter_table(wanted)
                break
            except TableAltered:
                if attempt + 1 == _ALTER_ATTEMPTS:
                    raise
        return Result(f"altered {statement.name}")

    def _add_partition(self, statement: st.AddPartition) -> Result:
        name = partition_of(self._store.describe(statement.name), statement.partition, line=statement.line)
        self._store.backend.create_partition(statement.name, name, if_not_exists=statement.if_not_exists)
        return Result(f"partition {name} of {statement.name}")

    def _drop_partition(self, statement: st.DropPartition) -> Result:
        name = partition_of(self._store.describe(statement.name), statement.partition, line=statement.line)
        self._store.backend.drop_partition(statement.name, name, if_exists=statement.if_exists)
        return Result(f"dropped partition {name} of {statement.name}")

    def _create_database(self, statement: st.CreateDatabase) -> Result:
        self._databases.add(statement.name)
        return Result(f"database {statement.name}; other sessions see it as soon as a table is in it")

    def _use(self, statement: st.Use) -> Result:
        if statement.is_catalog:
            return Result(f"catalog {statement.name}: there is one catalog here")
        self._database = statement.name
        return Result(f"database {statement.name}")

    def _set(self, statement: st.SetOption) -> Result:
        key, value = statement.key, statement.value
        if key in SETTINGS:
            check_value(key, value, SETTINGS[key], f"line {statement.line}")
            parse_options({key: value}, f"line {statement.line}")
            self._settings[key] = value
            return Result(f"set {key}")
        if key in ONLY_DEFAULT:
            values, instead = ONLY_DEFAULT[key]
            if value.strip().upper() not in values:
                raise InvalidOption(f"'{key}' = '{value}' is not supported", where=f"line {statement.line}", next_step=instead)
            return Result(f"'{key}' = '{value}' is how it is here")
        if key.startswith(INERT_SETTINGS):
            return Result(f"'{key}' has no effect here")
        alike = difflib.get_close_matches(key, list(SETTINGS), n=1)
        hint = f"Did you mean '{alike[0]}'?" if alike else f"Known are {', '.join(SETTINGS)}."
        raise InvalidOption(f"setting '{key}' is not known", where=f"line {statement.line}", next_step=hint)

    # views

    def _create_view(self, statement: st.CreateView) -> Result:
        known = self._views if statement.temporary else self._store.objects("view")
        if statement.name in known and not statement.temporary:
            if statement.if_not_exists or view_from_json(self._store.objects("view")[statement.name]).sql == statement.sql:
                return Result(f"view {statement.name} exists")
            raise AlreadyExists(f"view {statement.name} exists", where=f"line {statement.line}", next_step="DROP VIEW first.")
        view = ViewDefinition(statement.sql, statement.database, statement.columns)
        if statement.temporary:
            self._views[statement.name] = view
        else:
            self._store.put_object("view", statement.name, {**view_to_json(view), "comment": statement.comment})
        return Result(f"view {statement.name}")

    def _drop_view(self, statement: st.DropView) -> Result:
        name = statement.name
        if statement.materialized:
            return Result(materialized_views.drop(self._store, statement))
        if self._views.pop(name, None) is not None:
            return Result(f"dropped view {name}")
        if name not in self._store.objects("view"):
            if statement.if_exists:
                return Result(f"there is no view {name}")
            raise UnknownTable(f"there is no view {name}", where=f"line {statement.line}", next_step="SHOW VIEWS lists them.")
        self._store.drop_object("view", name)
        return Result(f"dropped view {name}")

    def _create_materialized(self, statement: st.CreateMaterializedView) -> Result:
        return Result(materialized_views.create(self._store, statement, self._settings, self._views, self._functions))

    def _refresh(self, statement: st.RefreshMaterializedView) -> Result:
        return Result(materialized_views.refresh(self._store, statement))

    # jobs and inserts

    def _insert(self, statement: st.InsertInto) -> Result:
        notices = _check_sink_hints(statement)
        check_is_no_view(self._store, statement.table, f"line {statement.line}")
        if is_of_constants(statement):
            return Result(insert_constants(self._store, statement))
        if self._settings.get("execution.runtime-mode", "streaming").lower() == "batch":
            return Result(insert_once(self._store, statement, self._settings, self._views, self._functions, self._lake))
        name = self._settings.get("pipeline.name") or default_job_name(statement)
        _, message = self._submit(statement, name)
        return Result("; ".join([message, *notices]))

    @property
    def _seen(self) -> Lake | None:
        """The rows that UPDATE and DELETE look at: those that SELECT shows, of the store alone where nothing answers a SELECT."""
        return StoreOnly(self._store) if self._lake is None and self._query is None else self._lake

    def _update(self, statement: st.Update) -> Result:
        check_is_no_view(self._store, statement.table, f"line {statement.line}")
        return Result(update_rows(self._store, statement, self._views, self._functions, self._seen))

    def _delete(self, statement: st.Delete) -> Result:
        check_is_no_view(self._store, statement.table, f"line {statement.line}")
        return Result(delete_rows(self._store, statement, self._views, self._functions, self._seen))

    def _submit(self, statement: st.InsertInto, name: str, **options: Any) -> tuple[JobDescriptor, str]:
        return submit(
            self._store,
            name=name,
            sink=statement.table,
            columns=statement.columns,
            select=statement.select_sql,
            text=statement.text,
            database=statement.database,
            settings=self._settings,
            views=self._views,
            functions=self._functions,
            first_line=statement.select_line,
            **options,
        )

    def _statement_set(self, statement: StatementSet) -> Result:
        """Every INSERT is checked before the first is stored. In batch mode they run one after another."""
        if self._settings.get("execution.runtime-mode", "streaming").lower() == "batch":
            return Result("; ".join(self._insert(insert).message for insert in statement.inserts))
        pipeline = self._settings.get("pipeline.name")
        names = [f"{pipeline}-{i}" if pipeline else default_job_name(insert) for i, insert in enumerate(statement.inserts, 1)]
        notices = [notice for insert in statement.inserts for notice in _check_sink_hints(insert)]
        for insert in statement.inserts:
            check_is_no_view(self._store, insert.table, f"line {insert.line}")
        planned: list[JobDescriptor] = []
        for name, insert in zip(names, statement.inserts, strict=True):
            if any(job.name == name for job in planned):
                raise StatementRefused(f"two statements of the set are named {name}", where=f"line {insert.line}",
                                       next_step="SET 'pipeline.name' = '...' before the set: its jobs are numbered.")  # fmt: skip
            planned.append(self._submit(insert, name, alongside=planned, stores=False)[0])
        messages = [self._submit(insert, name)[1] for name, insert in zip(names, statement.inserts, strict=True)]
        return Result("; ".join([*messages, *notices]))

    def _explain(self, statement: Explain) -> Result:
        """The plan as lines: what runs, what is kept where, what a change costs, what is not reproducible."""
        catalog = self._catalog()
        of = statement.of
        if isinstance(of, st.Query):
            plan = plan_select(catalog, of.text, default_database=self._database, settings=self._settings)
        else:
            name = state_name(self._settings.get("pipeline.name") or default_job_name(of))
            sink = self._store.describe(of.table)
            plan = plan_insert(catalog, sink, of.columns, of.select_sql, job=name, default_database=of.database, settings=self._settings)
        return Result("plan", pa.table({"plan": pa.array(explain(plan), pa.string())}))

    # answers

    def _select(self, statement: st.Query) -> Result:
        if self._query is None:
            raise StatementRefused("SELECT is answered by the query engine", where=f"line {statement.line}",
                                   next_step="Use `flashlake sql`, or SqlSession(store, query=QueryEngine(...).query).")  # fmt: skip
        rows = self._query(statement.text, default_database=self._database, views=self._views, functions=self._functions)
        assert isinstance(rows, pa.Table), "a query function returns a pa.Table"
        return Result(f"{rows.num_rows} rows", rows)

    def _show_tables(self, statement: st.ShowTables) -> Result:
        return Result("tables", reports.tables(self._store, statement.of_database))

    def _show_databases(self, _statement: st.ShowDatabases) -> Result:
        names = sorted(self._databases | {name.partition(".")[0] for name in self._store.tables()})
        return Result("databases", pa.table({"database": pa.array(names, pa.string())}))

    def _show_views(self, _statement: st.ShowViews) -> Result:
        return Result("views", reports.views(self._store, self._views))

    def _show_jobs(self, _statement: st.ShowJobs) -> Result:
        return Result("jobs", reports.jobs(self._store))

    def _show_create(self, statement: st.ShowCreateTable) -> Result:
        return Result("table", pa.table({"sql": [render_create_table(self._store.describe(statement.name))]}))

    def _show_partitions(self, statement: st.ShowPartitions) -> Result:
        rows = reports.partitions(self._store, statement.name)
        n_late = self._store.backend.late_rows(statement.name) if "late_rows" in self._store.capabilities else 0
        return Result(f"partitions; {n_late} late rows were dropped" if n_late else "partitions", rows)

    # consumers

    def _show_consumers(self, statement: st.ShowConsumers) -> Result:
        return Result("consumers", reports.consumers(self._store, groups.find(self._store.backend, None, statement.table)))

    def _describe_consumer(self, statement: st.DescribeConsumer) -> Result:
        found = groups.require(self._store.backend, statement.name, statement.table)
        return Result("consumer", pa.concat_tables([groups.describe(self._store.backend, group) for group in found]))

    def _reset_consumer(self, statement: st.ResetConsumer) -> Result:
        known = groups.find(self._store.backend, statement.name, statement.table)
        offsets = groups.reset(self._store.backend, self._store.table(statement.table), statement.name, statement.to)
        place = reports.printed(offsets) or "the beginning"
        if not known:
            return Result(
                f"consumer {statement.name} on {statement.table} is new: it begins at {place}. Was another one meant? DROP CONSUMER"
            )
        return Result(f"consumer {statement.name} on {statement.table} goes on from {place}")

    def _drop_consumer(self, statement: st.DropConsumer) -> Result:
        groups.drop(self._store.backend, statement.name, statement.table, if_exists=statement.if_exists)
        return Result(f"dropped consumer {statement.name} on {statement.table}")

    def _describe_table(self, statement: st.DescribeTable) -> Result:
        table = self._store.describe(statement.name)
        types = types_of(self._catalog(), table, f"table {table.name}") if table.computed else {}
        return Result("columns", reports.columns(table, types))

    def _describe_job(self, statement: st.DescribeJob) -> Result:
        return Result("job", reports.job(self._store, load_job(self._store, statement.name)))


def default_job_name(statement: st.InsertInto) -> str:
    """The name of a job that was not named: its table, and its columns if the statement lists them."""
    name = f"insert-into_{statement.table}"
    return f"{name}({','.join(statement.columns)})" if statement.columns else name


def _check_sink_hints(statement: st.InsertInto) -> list[str]:
    """Notices for hints behind the sink's name that do nothing here. Errors: StatementRefused for one that is not known."""
    for key in statement.hints:
        if key not in INERT_TABLE_HINTS:
            raise StatementRefused(
                f"the hint '{key}' on {statement.table} is not known", where=f"line {statement.line}", next_step="Leave it out."
            )
    return [f"hint '{key}' has no effect here" for key in statement.hints]


_S = SqlSession
_HANDLERS: dict[type, Callable[..., Result]] = {
    st.CreateTable: _S._create_table,
    st.DropTable: _S._drop_table,
    st.AlterTableAddColumn: _S._add_columns,
    st.AlterTableRenameColumn: _S._rename_column,
    st.AlterTableDropColumns: _S._drop_columns,
    st.AlterTableModifyColumns: _S._modify_columns,
    st.AlterTableSet: _S._set_table_options,
    st.AddPartition: _S._add_partition,
    st.DropPartition: _S._drop_partition,
    st.CreateDatabase: _S._create_database,
    st.Use: _S._use,
    st.SetOption: _S._set,
    st.CreateView: _S._create_view,
    st.DropView: _S._drop_view,
    st.CreateMaterializedView: _S._create_materialized,
    st.RefreshMaterializedView: _S._refresh,
    st.InsertInto: _S._insert,
    st.Update: _S._update,
    st.Delete: _S._delete,
    StatementSet: _S._statement_set,
    Explain: _S._explain,
    st.Query: _S._select,
    st.ShowTables: _S._show_tables,
    st.ShowDatabases: _S._show_databases,
    st.ShowViews: _S._show_views,
    st.ShowJobs: _S._show_jobs,
    st.ShowCreateTable: _S._show_create,
    st.ShowPartitions: _S._show_partitions,
    st.ShowConsumers: _S._show_consumers,
    st.DescribeConsumer: _S._describe_consumer,
    st.ResetConsumer: _S._reset_consumer,
    st.DropConsumer: _S._drop_consumer,
    st.DescribeTable: _S._describe_table,
    st.DescribeJob: _S._describe_job,
}
"""Which method runs which statement."""
