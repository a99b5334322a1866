"""Consumer statements: SHOW, DESCRIBE, RESET and DROP CONSUMER, from the tokens behind those words.

Owner: schema/ddl.py, which knows their first words.
"""

from __future__ import annotations

from datetime import UTC, datetime

from storage_engine.schema import statements as st
from storage_engine.schema.descriptor import Offsets, TableBucket
from storage_engine.schema.reader import Reader


def show_consumers(reader: Reader) -> st.Statement:
    """SHOW CONSUMERS [ON table], read behind its first two words."""
    return st.ShowConsumers(reader.table_name() if reader.take_words("ON") else None, **reader.place)


def describe_consumer(reader: Reader) -> st.Statement:
    """DESCRIBE CONSUMER name [ON table], read behind its first two words."""
    name = _name(reader)
    return st.DescribeConsumer(name, reader.table_name() if reader.take_words("ON") else None, **reader.place)


def drop_consumer(reader: Reader) -> st.Statement:
    """DROP CONSUMER [IF EXISTS] name ON table, read behind its first two words. Errors: StatementRefused."""
    if_exists = reader.take_words("IF", "EXISTS")
    name = _name(reader)
    reader.expect_word("ON", "DROP CONSUMER name ON table")
    return st.DropConsumer(name, reader.table_name(), if_exists, **reader.place)


def reset_consumer(reader: Reader) -> st.Statement:
    """RESET CONSUMER name ON table TO ..., read behind its first two words. Errors: StatementRefused."""
    name = _name(reader)
    reader.expect_word("ON", "RESET CONSUMER name ON table TO ...")
    table = reader.table_name()
    reader.expect_word("TO", "TO EARLIEST, LATEST, TIMESTAMP '...' or OFFSETS (...)")
    if reader.take_words("EARLIEST"):
        return st.ResetConsumer(name, table, "earliest", **reader.place)
    if reader.take_words("LATEST"):
        return st.ResetConsumer(name, table, "latest", **reader.place)
    if reader.take_words("TIMESTAMP"):
        return st.ResetConsumer(name, table, _moment(reader), **reader.place)
    if reader.take_words("OFFSETS"):
        return st.ResetConsumer(name, table, _offsets(reader), **reader.place)
    raise reader.refusal(
        f"a consumer cannot be reset to {reader.peek()}",
        "Write EARLIEST, LATEST, TIMESTAMP '2017-01-31 12:00:00' or OFFSETS ('partition/bucket' = '42').",
    )


def _name(reader: Reader) -> str:
    """A consumer's name: a word or a string."""
    return reader.take().value if reader.peek().kind == "string" else reader.plain_name("the consumer's name")


def _moment(reader: Reader) -> datetime:
    """A time; without a zone it is UTC."""
    token = reader.peek()
    text = reader.string("TIMESTAMP")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise reader.refusal(f"TIMESTAMP '{text}' is not a time", "Write '2017-01-31 12:00:00', or with a zone: +01:00.", token) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _offsets(reader: Reader) -> Offsets:
    """('partition/bucket' = 'offset', ...); a table without partitions has buckets '/0', '/1', ... or '0', '1', ..."""
    token = reader.peek()
    found: Offsets = {}
    for bucket, offset in reader.options("OFFSETS").items():
        try:
            found[TableBucket.parse(bucket)] = int(offset)
        except ValueError as error:
            remedy = "Write OFFSETS ('2017-01-31/0' = '42'), without partitions OFFSETS ('0' = '42')."
            raise reader.refusal(f"'{bucket}' = '{offset}' is not an offset of a bucket", remedy, token) from error
    return found
