"""Row statements: UPDATE and DELETE FROM, from the tokens behind those words.

Owner: schema/ddl.py, which knows their first words.
"""

from __future__ import annotations

from storage_engine.schema import statements as st
from storage_engine.schema.reader import Reader


def update(reader: Reader) -> st.Statement:
    """UPDATE table SET column = value, ... [WHERE condition], read behind its first word. Errors: StatementRefused."""
    table = reader.table_name()
    reader.expect_word("SET", "UPDATE table SET column = value, ... [WHERE condition]")
    assignments: dict[str, str] = {}
    while True:
        token = reader.peek()
        column = reader.plain_name("the column to set")
        if column in assignments:
            raise reader.refusal(f"column {column} is set twice", "Set each column once.", token)
        reader.expect("=", f"SET {column}")
        assignments[column] = reader.expression_to_end("WHERE", ",")
        if not reader.at(","):
            break
        reader.take()
    return st.Update(table, assignments, _condition(reader), **reader.place)


def delete(reader: Reader) -> st.Statement:
    """DELETE FROM table [WHERE condition], read behind its first word. Errors: StatementRefused."""
    reader.expect_word("FROM", "DELETE FROM table [WHERE condition]")
    return st.Delete(reader.table_name(), _condition(reader), **reader.place)


def _condition(reader: Reader) -> str | None:
    return reader.expression_to_end() if reader.take_words("WHERE") else None
