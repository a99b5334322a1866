"""Tables: the .sql files of a project, read as the definitions of its tables.

One file defines one table (or materialized view) and the INSERT statements that fill it. The folder is the layer.
Holds: assets/LAYER/NAME.sql defines LAYER.NAME; anything else is refused with file and line.
Never: opens a store; what the SELECT reads is decided by lineage.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from flashlake.orchestration.lineage import ColumnSource, column_sources, tables_read
from flashlake.orchestration.policies import AssetPolicy, asset_policy
from storage_engine.errors import StatementRefused
from storage_engine.schema.ddl import parse_statements
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.statements import CreateMaterializedView, CreateTable, CreateView, InsertInto, SetOption, Statement


@dataclass(frozen=True)
class Pipeline:
    """One statement that fills the table, under its pipeline name. `columns` is None when the INSERT maps by position."""

    name: str
    select_sql: str
    columns: tuple[str, ...] | None
    reads: tuple[str, ...]


@dataclass(frozen=True)
class TableDefinition:
    """What one .sql file says.

    kind        "table" or "materialized_view"
    descriptor  None for a materialized view: its columns follow from its SELECT
    statements  the whole file, in order, as the store executes it
    """

    name: str
    path: Path
    kind: str
    comment: str
    policy: AssetPolicy
    descriptor: TableDescriptor | None
    pipelines: tuple[Pipeline, ...]
    statements: str = field(repr=False)

    @property
    def layer(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_derived(self) -> bool:
        """True when SQL fills it; a source is filled from outside."""
        return bool(self.pipelines)

    @property
    def is_tiered(self) -> bool:
        return self.descriptor is not None and self.descriptor.is_tiered

    @property
    def reads(self) -> tuple[str, ...]:
        """Tables that its pipelines read, without itself, each once."""
        return tuple(dict.fromkeys(table for pipeline in self.pipelines for table in pipeline.reads if table != self.name))


def read_project(folder: Path) -> list[TableDefinition]:
    """All definitions under `folder`, in the order in which the store can execute them: what is read comes first.

    Errors: StatementRefused with file and line; also for tables that read each other.
    """
    files = sorted(folder.glob("*/*.sql"))
    if not files:
        raise StatementRefused("there is no table definition", where=str(folder), next_step="Write LAYER/NAME.sql files below this folder.")
    return in_order(read_file(path) for path in files)


def read_file(path: Path) -> TableDefinition:
    """One definition. Errors: StatementRefused, InvalidOption, with the file in `where`."""
    text = path.read_text(encoding="utf-8")
    expected = f"{path.parent.name}.{path.stem}"
    statements = parse_statements(text, default_database=path.parent.name)
    creates = [statement for statement in statements if isinstance(statement, CreateTable | CreateMaterializedView)]
    if len(creates) != 1:
        raise _refused(
            path,
            statements,
            f"{len(creates)} tables are created",
            "One file defines one table or materialized view; move the others to files of their own.",
        )
    create = creates[0]
    name = create.descriptor.name if isinstance(create, CreateTable) else create.name
    if name != expected:
        raise _refused(
            path, [create], f"the table is named {name}", f"Name it {expected}, or move the file to {name.replace('.', '/')}.sql."
        )
    for statement in statements:
        if not isinstance(statement, CreateTable | CreateMaterializedView | CreateView | SetOption | InsertInto):
            raise _refused(
                path, [statement], f"{type(statement).__name__} does not belong in a table definition", "Run it with flashlake sql."
            )
    if isinstance(create, CreateMaterializedView):
        view = Pipeline(name, create.sql, None, tuple(tables_read(create.sql)))
        policy = asset_policy(name, create.properties, None)
        return TableDefinition(name, path, "materialized_view", create.comment, policy, None, (view,), text)
    descriptor = create.descriptor
    policy = asset_policy(name, descriptor.options, descriptor.column_names)
    return TableDefinition(name, path, "table", descriptor.comment, policy, descriptor, tuple(_pipelines(path, name, statements)), text)


def _pipelines(path: Path, table: str, statements: Iterable[Statement]) -> Iterable[Pipeline]:
    name: str | None = None
    seen: set[str] = set()
    for statement in statements:
        if isinstance(statement, SetOption) and statement.key == "pipeline.name":
            name = statement.value
        elif isinstance(statement, InsertInto):
            if statement.table != table:
                raise _refused(
                    path,
                    [statement],
                    f"the INSERT writes {statement.table}",
                    f"A file fills the table it defines, {table}; move the INSERT.",
                )
            if name is None or name in seen:
                raise _refused(
                    path,
                    [statement],
                    "the INSERT has no pipeline name of its own",
                    "Put SET 'pipeline.name' = '...'; before it: jobs are found by this name.",
                )
            seen.add(name)
            yield Pipeline(name, statement.select_sql, statement.columns, tuple(tables_read(statement.select_sql)))


def in_order(definitions: Iterable[TableDefinition]) -> list[TableDefinition]:
    """The same definitions, each after those it reads. Errors: StatementRefused when tables read each other."""
    left = {definition.name: definition for definition in definitions}
    known = set(left)
    done: dict[str, TableDefinition] = {}
    while left:
        ready = [name for name, definition in left.items() if all(table in done or table not in known for table in definition.reads)]
        if not ready:
            first = next(iter(left.values()))
            raise StatementRefused(
                f"tables read each other: {', '.join(sorted(left))}",
                where=str(first.path),
                next_step="Break the circle: a table is filled from tables that exist before it.",
            )
        done.update((name, left.pop(name)) for name in ready)
    return list(done.values())


def output_columns(definition: TableDefinition, schemas: dict[str, dict[str, str]]) -> dict[str, list[ColumnSource]]:
    """Which columns of which tables each column of `definition` comes from, over all its pipelines.

    schemas  table -> column -> SQL type, of the tables read.
    """
    sources: dict[str, list[ColumnSource]] = {}
    for pipeline in definition.pipelines:
        targets = pipeline.columns or (definition.descriptor.column_names if definition.descriptor else None)
        for position, (alias, found) in enumerate(column_sources(pipeline.select_sql, schemas).items()):
            target = targets[position] if targets is not None and position < len(targets) else alias
            merged = sources.setdefault(target, [])
            merged.extend(source for source in found if source not in merged)
    return sources


def _refused(path: Path, statements: Iterable[Statement], what: str, remedy: str) -> StatementRefused:
    line = next((statement.line for statement in statements), 1)
    return StatementRefused(what, where=f"{path}, line {line}", next_step=remedy)
