"""DDL: Flink-dialect SQL text to statements.

Owner: SqlSession (stream/), Store.execute and the asset loader call parse_statements.
Holds: what is not understood is refused with its line and clause; nothing is skipped. CREATE TABLE comes out validated.
Never: parses a SELECT (stream/plan/tree.py, query_engine), touches a catalog, or fills in ${...} placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from storage_engine.schema import consumer_ddl, job_ddl, row_statements
from storage_engine.schema import statements as st
from storage_engine.schema.create_table import parse_column, parse_create_table, render_create_table
from storage_engine.schema.descriptor import Column
from storage_engine.schema.reader import Reader
from storage_engine.schema.scanner import Token, split_statements
from storage_engine.schema.statement_sets import parse_holding
from storage_engine.schema.statements import Statement
from storage_engine.schema.user_statements import USER_STATEMENTS

DEFAULT_DATABASE = "default"

_INTERVAL_SECONDS = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86_400}


def parse_statements(sql: str, default_database: str = DEFAULT_DATABASE) -> list[Statement]:
    """The statements of a text, in order; USE db changes the database of the names after it.

    Errors: StatementRefused naming line and clause; InvalidOption for a WITH clause that is wrong.

    >>> [type(statement).__name__ for statement in parse_statements("USE db; INSERT INTO t SELECT a FROM s;")]
    ['Use', 'InsertInto']
    """
    database = default_database
    parsed: list[Statement] = []
    pending = split_statements(sql)
    while pending:
        tokens, *pending = pending

        def parse(held: list[Token], current: str = database) -> Statement:
            return _parse_one(Reader(sql, held, current))

        holding = parse_holding(tokens, pending, parse)
        statement, n_taken = holding or (parse(tokens), 0)
        pending = pending[n_taken:]
        if isinstance(statement, st.Use) and not statement.is_catalog:
            database = statement.name
        parsed.append(statement)
    return parsed


def _parse_one(reader: Reader) -> Statement:
    for words, parse in _STATEMENTS:
        if reader.take_words(*words):
            reader.statement = " ".join(words)
            statement = parse(reader)
            reader.expect_end()
            return statement
    if reader.peek().upper in ("SELECT", "WITH", "VALUES") or reader.peek().text == "(":
        return st.Query(**reader.place)
    raise reader.refusal(
        f"{_beginning(reader)} does not begin a statement",
        "Begin with CREATE, ALTER, DROP, INSERT INTO, UPDATE, DELETE FROM, EXPLAIN, SELECT, SET, USE, SHOW, DESCRIBE, RESET CONSUMER, "
        "STOP JOB, PAUSE JOB, RESUME JOB, GRANT or REVOKE.",
    )


def _beginning(reader: Reader) -> str:
    """The first word, and the second where the first could begin a statement."""
    begins = {words[0] for words, _ in _STATEMENTS if len(words) > 1}
    is_more = reader.peek().upper in begins and reader.peek(1).kind != "end"
    return f"{reader.peek()} {reader.peek(1)}" if is_more else str(reader.peek())


def _create_database(reader: Reader) -> Statement:
    if_not_exists = reader.take_words("IF", "NOT", "EXISTS")
    name = reader.database_name()
    if (clause := reader.peek()).upper in ("COMMENT", "WITH"):
        raise reader.refusal(
            f"CREATE DATABASE ... {clause.upper} is not supported", "Leave it out: a database is a name, without properties."
        )
    return st.CreateDatabase(name, if_not_exists, **reader.place)


def _create_view(reader: Reader, *, temporary: bool = False) -> Statement:
    if_not_exists = reader.take_words("IF", "NOT", "EXISTS")
    name = reader.table_name()
    columns = reader.name_list("the view's columns") if reader.at("(") else None
    comment = reader.string("COMMENT") if reader.take_words("COMMENT") else ""
    reader.expect_word("AS", "CREATE VIEW name AS SELECT ...")
    return st.CreateView(name, reader.rest_select(), temporary, comment, columns, if_not_exists, **reader.place)


def _create_function(reader: Reader, *, temporary: bool = False) -> Statement:
    if_not_exists = reader.take_words("IF", "NOT", "EXISTS")
    name = reader.plain_name("the function's name")
    reader.expect_word("AS", "CREATE FUNCTION name AS 'module.function' LANGUAGE PYTHON")
    target = reader.string("AS")
    language = "JAVA"
    if reader.take_words("LANGUAGE"):
        token = reader.take()
        language = token.upper
        if language not in ("PYTHON", "JAVA", "SCALA", "SQL"):
            raise reader.refusal(f"LANGUAGE {token} is not known", "Write LANGUAGE PYTHON.", token)
    return st.CreateFunction(name, target, language, temporary, if_not_exists, **reader.place)


def _create_materialized_view(reader: Reader) -> Statement:
    if_not_exists = reader.take_words("IF", "NOT", "EXISTS")
    name = reader.table_name()
    comment, partition_by, refresh, properties = "", (), None, {}
    seen: set[str] = set()
    while not reader.take_words("AS"):
        clause = reader.peek()
        if clause.upper in seen:
            raise reader.refusal(f"{clause.upper} is written twice", "Write it once.", clause)
        seen.add(clause.upper)
        if reader.take_words("COMMENT"):
            comment = reader.string("COMMENT")
        elif reader.take_words("PARTITION", "BY"):
            partition_by = _partition_expressions(reader)
        elif reader.take_words("REFRESH"):
            refresh = _refresh(reader)
        elif reader.take_words("PROPERTIES"):
            properties = reader.options("PROPERTIES")
        else:
            raise reader.refusal(
                f"{clause} is not a clause of a materialized view",
                "Clauses: COMMENT, PARTITION BY, REFRESH, PROPERTIES, AS SELECT.",
                clause,
            )
    return st.CreateMaterializedView(name, reader.rest_select(), partition_by, refresh, properties, comment, if_not_exists, **reader.place)


def _partition_expressions(reader: Reader) -> tuple[str, ...]:
    if reader.at("("):
        reader.take()
        expressions = reader.expressions_until(")")
        reader.expect(")", "PARTITION BY")
        return expressions
    return (reader.expression_before("COMMENT", "REFRESH", "PROPERTIES", "AS"),)


def _refresh(reader: Reader) -> float | None:
    """None: by hand; 0.0: on each change; else the seconds of EVERY (INTERVAL n unit)."""
    if reader.peek().upper == "DEFERRED":
        raise reader.refusal("REFRESH DEFERRED is not supported", "Leave out DEFERRED: a view is filled when it is created.")
    reader.take_words("IMMEDIATE")
    if reader.take_words("MANUAL"):
        return None
    reader.expect_word("ASYNC", "REFRESH ASYNC EVERY (INTERVAL 1 MINUTE), REFRESH ASYNC, or REFRESH MANUAL")
    if reader.peek().upper == "START":
        raise reader.refusal("REFRESH ASYNC START (...) is not supported", "Leave out START: the first refresh is at once.")
    if not reader.take_words("EVERY"):
        return 0.0
    reader.expect("(", "EVERY")
    reader.expect_word("INTERVAL", "EVERY (INTERVAL 1 MINUTE)")
    amount = reader.take()
    if amount.kind not in ("number", "string") or re.fullmatch(r"\d+(\.\d+)?", amount.value) is None or float(amount.value) <= 0:
        raise reader.refusal(f"INTERVAL {amount} is not a positive number", "Write EVERY (INTERVAL 1 MINUTE).", amount)
    unit = reader.take()
    seconds = _INTERVAL_SECONDS.get(unit.upper.removesuffix("S"))
    if seconds is None:
        raise reader.refusal(f"{unit} is not a unit of time", "Use SECOND, MINUTE, HOUR or DAY.", unit)
    reader.expect(")", "EVERY")
    return float(amount.value) * seconds


def _drop_table(reader: Reader) -> Statement:
    if_exists = reader.take_words("IF", "EXISTS")
    return st.DropTable(reader.table_name(), if_exists, **reader.place)


def _drop_view(reader: Reader, *, temporary: bool = False, materialized: bool = False) -> Statement:
    if_exists = reader.take_words("IF", "EXISTS")
    return st.DropView(reader.table_name(), if_exists, temporary, materialized, **reader.place)


def _drop_function(reader: Reader) -> Statement:
    if_exists = reader.take_words("IF", "EXISTS")
    return st.DropFunction(reader.plain_name("the function's name"), if_exists, **reader.place)


def _alter_table(reader: Reader) -> Statement:
    name = reader.table_name()
    if reader.take_words("ADD"):
        if_not_exists = reader.take_words("IF", "NOT", "EXISTS")
        if reader.take_words("PARTITION"):
            return st.AddPartition(name, reader.options("PARTITION", names_are_words=True), if_not_exists, **reader.place)
        if if_not_exists:
            raise reader.refusal("ADD IF NOT EXISTS needs PARTITION", "Write ADD IF NOT EXISTS PARTITION (column = 'value').")
        reader.take_words("COLUMN")
        return st.AlterTableAddColumn(name, _columns(reader, "ADD"), **reader.place)
    if reader.take_words("MODIFY"):
        reader.take_words("COLUMN")
        return st.AlterTableModifyColumns(name, _columns(reader, "MODIFY"), **reader.place)
    if reader.take_words("RENAME"):
        return _rename(reader, name)
    if reader.take_words("SET"):
        return st.AlterTableSet(name, reader.options("SET"), **reader.place)
    if reader.take_words("DROP", "PARTITION"):
        return st.DropPartition(name, reader.options("PARTITION", names_are_words=True), **reader.place)
    if reader.take_words("DROP", "IF", "EXISTS", "PARTITION"):
        return st.DropPartition(name, reader.options("PARTITION", names_are_words=True), if_exists=True, **reader.place)
    if reader.take_words("DROP"):
        return st.AlterTableDropColumns(name, _dropped(reader), **reader.place)
    raise reader.refusal(
        f"ALTER TABLE ... {reader.peek()} is not supported",
        "Supported: ADD, MODIFY, RENAME and DROP of columns, ADD PARTITION (column = 'value'), SET ('key' = 'value'), "
        "DROP PARTITION (column = 'value').",
    )


def _columns(reader: Reader, clause: str) -> tuple[Column, ...]:
    """One column definition, or several in brackets."""
    if not reader.at("("):
        return (_column(reader, clause),)
    reader.take()
    columns = [_column(reader, clause)]
    while reader.at(","):
        reader.take()
        columns.append(_column(reader, clause))
    reader.expect(")", f"{clause} (...)")
    return tuple(columns)


def _column(reader: Reader, clause: str) -> Column:
    if reader.peek().upper in ("PRIMARY", "CONSTRAINT", "WATERMARK") and reader.peek(1).upper in ("KEY", "FOR"):
        raise reader.refusal(f"{clause} {reader.peek()} is not supported", "A table's key is fixed: create a new table and copy.")
    column, is_key = parse_column(reader)
    if is_key:
        raise reader.refusal(f"column {column.name}: a primary key cannot be added", "Create a new table.")
    if reader.peek().upper in ("FIRST", "AFTER"):
        remedy = "A column is added at the end: leave the position out." if clause == "ADD" else "Columns keep their places: leave it out."
        raise reader.refusal(f"{clause} ... {reader.peek()} is not supported", remedy)
    return column


def _rename(reader: Reader, name: str) -> Statement:
    if reader.peek().upper == "TO":
        raise reader.refusal("ALTER TABLE ... RENAME TO is not supported", "A table keeps its name; RENAME a TO b renames a column.")
    if reader.peek().upper == "COLUMN" and reader.peek(1).upper != "TO":
        reader.take()
    old = reader.plain_name("the column's name")
    reader.expect_word("TO", "ALTER TABLE t RENAME a TO b")
    return st.AlterTableRenameColumn(name, old, reader.plain_name("the column's new name"), **reader.place)


def _dropped(reader: Reader) -> tuple[str, ...]:
    if (reader.peek().upper, reader.peek(1).upper) in (("PRIMARY", "KEY"), ("IF", "EXISTS")) or (
        reader.peek().upper in ("CONSTRAINT", "WATERMARK") and reader.peek(1).kind != "end"
    ):
        raise reader.refusal(f"DROP {reader.peek()} is not supported", "DROP takes columns, or PARTITION (column = 'value').")
    if reader.peek().upper == "COLUMN" and reader.peek(1).kind != "end":
        reader.take()
    return reader.name_list("the columns to drop") if reader.at("(") else (reader.plain_name("the column's name"),)


def _insert_into(reader: Reader) -> Statement:
    table = reader.table_name()
    hints = reader.hint_options()
    columns = None
    if reader.at("(") and reader.peek(1).upper not in ("SELECT", "WITH", "VALUES"):
        columns = reader.name_list("the target columns")
        hints = hints or reader.hint_options()
    if reader.take_words("PARTITION"):
        raise reader.refusal("INSERT INTO ... PARTITION (...) is not supported", "Select the partition column like any other.")
    return st.InsertInto(table, columns, reader.rest_select(), hints, **reader.place)


def _set(reader: Reader) -> Statement:
    token = reader.take()
    if token.kind not in ("string", "word", "quoted"):
        raise reader.refusal(f"SET needs an option, found {token}", "Write SET 'key' = 'value'.", token)
    key = token.value
    while token.kind == "word" and (reader.at(".") or reader.at("-")):
        key += reader.take().text + reader.take().text
    reader.expect("=", "SET")
    value = reader.take()
    if value.kind not in ("string", "word", "number", "quoted"):
        raise reader.refusal(f"SET '{key}' needs a value, found {value}", "Write SET 'key' = 'value'.", value)
    return st.SetOption(key, value.value, **reader.place)


def _use(reader: Reader) -> Statement:
    return st.Use(reader.database_name(), **reader.place)


def _use_catalog(reader: Reader) -> Statement:
    return st.Use(reader.plain_name("the catalog's name"), is_catalog=True, **reader.place)


def _show_tables(reader: Reader) -> Statement:
    database = reader.database_name() if reader.take_words("IN") or reader.take_words("FROM") else None
    return st.ShowTables(database, **reader.place)


def _named(make: Callable[..., Statement], read: Callable[[Reader], str]) -> Callable[[Reader], Statement]:
    return lambda reader: make(read(reader), **reader.place)


def _bare(make: Callable[..., Statement]) -> Callable[[Reader], Statement]:
    return lambda reader: make(**reader.place)


def _refused(what: str, remedy: str) -> Callable[[Reader], Statement]:
    def parse(reader: Reader) -> Statement:
        raise reader.refusal(what, remedy)

    return parse


_NO_DROP_DATABASE = ("DROP DATABASE is not supported", "DROP TABLE and DROP VIEW what is in it, one by one.")
_STATEMENTS: tuple[tuple[tuple[str, ...], Callable[[Reader], Statement]], ...] = (
    (("CREATE", "TABLE"), parse_create_table),
    (("CREATE", "DATABASE"), _create_database),
    (("CREATE", "SCHEMA"), _create_database),
    (("CREATE", "MATERIALIZED", "VIEW"), _create_materialized_view),
    (("CREATE", "TEMPORARY", "VIEW"), lambda reader: _create_view(reader, temporary=True)),
    (("CREATE", "VIEW"), _create_view),
    (("CREATE", "TEMPORARY", "SYSTEM", "FUNCTION"), lambda reader: _create_function(reader, temporary=True)),
    (("CREATE", "TEMPORARY", "FUNCTION"), lambda reader: _create_function(reader, temporary=True)),
    (("CREATE", "FUNCTION"), _create_function),
    (
        ("CREATE", "TEMPORARY", "TABLE"),
        _refused("CREATE TEMPORARY TABLE is not supported", "Create a table, and drop it when it is no longer needed."),
    ),
    (
        ("CREATE", "JOB"),
        _refused("CREATE JOB is not a statement", "SET 'pipeline.name' = 'name'; INSERT INTO table SELECT ... makes a job of that name."),
    ),
    (("DROP", "TABLE"), _drop_table),
    (("DROP", "DATABASE"), _refused(*_NO_DROP_DATABASE)),
    (("DROP", "SCHEMA"), _refused(*_NO_DROP_DATABASE)),
    (("DROP", "MATERIALIZED", "VIEW"), lambda reader: _drop_view(reader, materialized=True)),
    (("DROP", "TEMPORARY", "VIEW"), lambda reader: _drop_view(reader, temporary=True)),
    (("DROP", "VIEW"), _drop_view),
    (("DROP", "TEMPORARY", "FUNCTION"), _drop_function),
    (("DROP", "FUNCTION"), _drop_function),
    (("DROP", "CONSUMER"), consumer_ddl.drop_consumer),
    (("DROP", "JOB"), job_ddl.drop_job),
    (("ALTER", "JOB"), job_ddl.alter_job),
    (("ALTER", "TABLE"), _alter_table),
    (("INSERT", "INTO"), _insert_into),
    (("INSERT", "OVERWRITE"), _refused("INSERT OVERWRITE is not supported", "Use INSERT INTO; a backfill rewrites partitions.")),
    (("UPDATE",), row_statements.update),
    (("DELETE",), row_statements.delete),
    (("SET",), _set),
    (("USE", "CATALOG"), _use_catalog),
    (("USE",), _use),
    (("SHOW", "TABLES"), _show_tables),
    (("SHOW", "DATABASES"), _bare(st.ShowDatabases)),
    (("SHOW", "VIEWS"), _bare(st.ShowViews)),
    (("SHOW", "JOBS"), _bare(st.ShowJobs)),
    (("SHOW", "FUNCTIONS"), _bare(st.ShowFunctions)),
    (("SHOW", "USER", "FUNCTIONS"), lambda reader: st.ShowFunctions(only_users=True, **reader.place)),
    (("SHOW", "CONSUMERS"), consumer_ddl.show_consumers),
    (("SHOW", "CREATE", "TABLE"), _named(st.ShowCreateTable, Reader.table_name)),
    (("SHOW", "PARTITIONS"), _named(st.ShowPartitions, Reader.table_name)),
    (("REFRESH", "MATERIALIZED", "VIEW"), _named(st.RefreshMaterializedView, Reader.table_name)),
    (("STOP", "JOB"), _named(st.StopJob, Reader.job_name)),
    (("PAUSE", "JOB"), _named(st.PauseJob, Reader.job_name)),
    (("RESUME", "JOB"), _named(st.ResumeJob, Reader.job_name)),
    (("DESCRIBE", "JOB"), _named(st.DescribeJob, Reader.job_name)),
    (("DESC", "JOB"), _named(st.DescribeJob, Reader.job_name)),
    (("DESCRIBE", "CONSUMER"), consumer_ddl.describe_consumer),
    (("DESC", "CONSUMER"), consumer_ddl.describe_consumer),
    (("RESET", "CONSUMER"), consumer_ddl.reset_consumer),
    *USER_STATEMENTS,
    (("DESCRIBE",), _named(st.DescribeTable, Reader.table_name)),
    (("DESC",), _named(st.DescribeTable, Reader.table_name)),
)

__all__ = ["DEFAULT_DATABASE", "parse_statements", "render_create_table"]
