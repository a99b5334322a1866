"""Statements: what parse_statements returns, one value per statement. Values only.

Holds: every statement carries its text, the line it starts on and the database that was current.
       A name of a table or view is "database.name"; a catalog in front of it is left out.
       The text of a SELECT is passed on untouched: stream/ and query_engine parse it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from storage_engine.schema.descriptor import Column, Offsets, TableDescriptor


@dataclass(frozen=True)
class Statement:
    """One statement of a text: `text` without the final semicolon, `line` from 1, `database` for unqualified names."""

    text: str = field(default="", kw_only=True)
    line: int = field(default=1, kw_only=True)
    database: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class CreateTable(Statement):
    """CREATE TABLE; the descriptor is checked and in normal form (schema/validate.py)."""

    descriptor: TableDescriptor
    if_not_exists: bool = False


@dataclass(frozen=True)
class DropTable(Statement):
    name: str
    if_exists: bool = False


@dataclass(frozen=True)
class AlterTableAddColumn(Statement):
    """ALTER TABLE t ADD c TYPE, ALTER TABLE t ADD COLUMN c TYPE, ALTER TABLE t ADD (c TYPE, ...): at the end, nullable."""

    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class AlterTableRenameColumn(Statement):
    """ALTER TABLE t RENAME [COLUMN] a TO b."""

    name: str
    old: str
    new: str


@dataclass(frozen=True)
class AlterTableDropColumns(Statement):
    """ALTER TABLE t DROP [COLUMN] c, ALTER TABLE t DROP (a, b)."""

    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class AlterTableModifyColumns(Statement):
    """ALTER TABLE t MODIFY [COLUMN] c TYPE [NOT NULL] [COMMENT '...'], ALTER TABLE t MODIFY (a TYPE, b TYPE)."""

    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class AlterTableSet(Statement):
    """ALTER TABLE t SET ('key' = 'value', ...); 'bucket.num' rescales the table."""

    name: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class AddPartition(Statement):
    """ALTER TABLE t ADD [IF NOT EXISTS] PARTITION (column = value)."""

    name: str
    partition: Mapping[str, str]
    if_not_exists: bool = False


@dataclass(frozen=True)
class DropPartition(Statement):
    """ALTER TABLE t DROP [IF EXISTS] PARTITION (column = value, ...)."""

    name: str
    partition: Mapping[str, str]
    if_exists: bool = False


@dataclass(frozen=True)
class CreateDatabase(Statement):
    """Accepted: a database exists as soon as a table is in it."""

    name: str
    if_not_exists: bool = False


@dataclass(frozen=True)
class Use(Statement):
    """USE db: unqualified names after it belong to db. USE CATALOG c has no effect (`is_catalog`)."""

    name: str
    is_catalog: bool = False


@dataclass(frozen=True)
class SetOption(Statement):
    key: str
    value: str


@dataclass(frozen=True)
class CreateView(Statement):
    """CREATE [TEMPORARY] VIEW; `columns` renames the columns of the SELECT."""

    name: str
    sql: str
    temporary: bool = False
    comment: str = ""
    columns: tuple[str, ...] | None = None
    if_not_exists: bool = False


@dataclass(frozen=True)
class DropView(Statement):
    name: str
    if_exists: bool = False
    temporary: bool = False
    materialized: bool = False


@dataclass(frozen=True)
class CreateFunction(Statement):
    """CREATE [TEMPORARY] FUNCTION f AS 'target' [LANGUAGE PYTHON]; `language` is JAVA when none is written, as in Flink."""

    name: str
    target: str
    language: str = "JAVA"
    temporary: bool = False
    if_not_exists: bool = False


@dataclass(frozen=True)
class DropFunction(Statement):
    name: str
    if_exists: bool = False


@dataclass(frozen=True)
class ShowFunctions(Statement):
    """SHOW [USER] FUNCTIONS; `only_users`: without those of SQL."""

    only_users: bool = False


@dataclass(frozen=True)
class CreateMaterializedView(Statement):
    """CREATE MATERIALIZED VIEW.

    refresh       None: by hand (MANUAL, or no REFRESH clause); 0.0: on each change of a base table (ASYNC); else every so many seconds
    partition_by  expressions as written
    """

    name: str
    sql: str
    partition_by: tuple[str, ...] = ()
    refresh: float | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    comment: str = ""
    if_not_exists: bool = False


@dataclass(frozen=True)
class RefreshMaterializedView(Statement):
    name: str


@dataclass(frozen=True)
class InsertInto(Statement):
    """INSERT INTO table [/*+ OPTIONS(...) */] [(columns)] select_sql; `select_sql` may also be VALUES (...)."""

    table: str
    columns: tuple[str, ...] | None
    select_sql: str
    hints: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_values(self) -> bool:
        return self.select_sql[:6].upper() == "VALUES"

    @property
    def select_line(self) -> int:
        """The line on which its SELECT begins."""
        before, _, _ = self.text.partition(self.select_sql)
        return self.line + before.count("\n")


@dataclass(frozen=True)
class Update(Statement):
    """UPDATE table SET column = expression, ... [WHERE condition]; expressions and condition as written."""

    table: str
    assignments: Mapping[str, str]
    condition: str | None


@dataclass(frozen=True)
class Delete(Statement):
    """DELETE FROM table [WHERE condition]; the condition as written."""

    table: str
    condition: str | None


@dataclass(frozen=True)
class Query(Statement):
    """SELECT, WITH ... SELECT, or VALUES; its SQL is `text`."""


@dataclass(frozen=True)
class ShowTables(Statement):
    """SHOW TABLES [IN db]; `of_database` is None for all databases."""

    of_database: str | None = None


@dataclass(frozen=True)
class ShowDatabases(Statement):
    pass


@dataclass(frozen=True)
class ShowViews(Statement):
    pass


@dataclass(frozen=True)
class ShowJobs(Statement):
    pass


@dataclass(frozen=True)
class ShowCreateTable(Statement):
    name: str


@dataclass(frozen=True)
class ShowPartitions(Statement):
    name: str


@dataclass(frozen=True)
class DescribeTable(Statement):
    name: str


@dataclass(frozen=True)
class DescribeJob(Statement):
    name: str


@dataclass(frozen=True)
class ShowConsumers(Statement):
    """SHOW CONSUMERS [ON table]; `table` is None for all."""

    table: str | None = None


@dataclass(frozen=True)
class DescribeConsumer(Statement):
    """DESCRIBE CONSUMER name [ON table]; `table` is None for all that it reads."""

    name: str
    table: str | None = None


@dataclass(frozen=True)
class ResetConsumer(Statement):
    """RESET CONSUMER name ON table TO EARLIEST | LATEST | TIMESTAMP '...' | OFFSETS ('partition/bucket' = 'offset', ...)."""

    name: str
    table: str
    to: Literal["earliest", "latest"] | datetime | Offsets


@dataclass(frozen=True)
class DropConsumer(Statement):
    """DROP CONSUMER [IF EXISTS] name ON table."""

    name: str
    table: str
    if_exists: bool = False


@dataclass(frozen=True)
class StopJob(Statement):
    name: str


@dataclass(frozen=True)
class PauseJob(Statement):
    name: str


@dataclass(frozen=True)
class ResumeJob(Statement):
    name: str


@dataclass(frozen=True)
class DropJob(Statement):
    """DROP JOB [IF EXISTS] name."""

    name: str
    if_exists: bool = False


@dataclass(frozen=True)
class AlterJobSet(Statement):
    """ALTER JOB name SET ('key' = 'value', ...)."""

    name: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class AlterJobReset(Statement):
    """ALTER JOB name RESET ('key', ...): back to the defaults."""

    name: str
    keys: tuple[str, ...]
