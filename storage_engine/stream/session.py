"""Session: SQL text against one store. Tables are made and altered here; jobs, views and queries join as the planner grows.

(The STREAM owner extends this file: SET, views, INSERT INTO jobs, SHOW/DESCRIBE/STOP JOB.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from storage_engine.errors import StatementRefused
from storage_engine.schema import statements as st
from storage_engine.schema.ddl import parse_statements
from storage_engine.schema.validate import add_columns, set_options

if TYPE_CHECKING:
    from storage_engine.client.store import Store


@dataclass(frozen=True)
class Result:
    """What a statement did: a message for people, and rows if it answers with rows."""

    message: str
    rows: pa.Table | None = None


class SqlSession:
    """Runs statements one after another; the first that fails ends the run."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def execute(self, text: str) -> list[Result]:
        return [self._run(statement) for statement in parse_statements(text)]

    def _run(self, statement: st.Statement) -> Result:
        backend = self._store.backend
        match statement:
            case st.CreateTable(descriptor, if_not_exists):
                backend.create_table(descriptor, if_not_exists=if_not_exists)
                return Result(f"table {descriptor.name}")
            case st.DropTable(name, if_exists):
                backend.drop_table(name, if_exists=if_exists)
                return Result(f"dropped {name}")
            case st.AlterTableAddColumn(name, columns):
                backend.alter_table(add_columns(self._store.describe(name), columns))
                return Result(f"altered {name}")
            case st.AlterTableSet(name, options):
                backend.alter_table(set_options(self._store.describe(name), dict(options)))
                return Result(f"altered {name}")
            case st.DropPartition(name, partition, if_exists):
                backend.drop_partition(name, next(iter(partition.values())), if_exists=if_exists)
                return Result(f"dropped partition of {name}")
            case st.CreateDatabase(name) | st.Use(name):
                return Result(f"database {name}")
            case st.ShowTables():
                return Result("tables", pa.table({"table": pa.array(self._store.tables(), pa.string())}))
            case _:
                raise StatementRefused(
                    f"{type(statement).__name__} is not run here yet", where=f"line {statement.line}", next_step="Use a table statement."
                )
