"""Job statements: DROP JOB and ALTER JOB, from the tokens behind those words.

Owner: schema/ddl.py, which knows their first words.
"""

from __future__ import annotations

from storage_engine.schema import statements as st
from storage_engine.schema.reader import Reader


def drop_job(reader: Reader) -> st.Statement:
    """DROP JOB [IF EXISTS] name, read behind its first two words."""
    if_exists = reader.take_words("IF", "EXISTS")
    return st.DropJob(reader.job_name(), if_exists, **reader.place)


def alter_job(reader: Reader) -> st.Statement:
    """ALTER JOB name SET (...) or RESET (...), read behind its first two words. Errors: StatementRefused."""
    name = reader.job_name()
    if reader.take_words("SET"):
        return st.AlterJobSet(name, reader.options("SET"), **reader.place)
    if reader.take_words("RESET"):
        return st.AlterJobReset(name, _keys(reader), **reader.place)
    raise reader.refusal(
        f"ALTER JOB ... {reader.peek()} is not supported",
        "Write SET ('key' = 'value', ...) or RESET ('key', ...). Another statement under the job's name is an upgrade: "
        "SET 'pipeline.upgrade' = '...' before its INSERT INTO.",
    )


def _keys(reader: Reader) -> tuple[str, ...]:
    """('key', ...), in order."""
    reader.expect("(", "RESET")
    keys = [reader.string("an option of RESET")]
    while reader.at(","):
        reader.take()
        keys.append(reader.string("an option of RESET"))
    reader.expect(")", "RESET")
    return tuple(keys)
