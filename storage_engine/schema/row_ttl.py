"""Row time to live: what `table.kv.ttl` and `table.kv.ttl.time-column` of a primary-key table may say.

Rows that have outlived it go when the changelog below them has expired and is compacted: a shorter time than `table.log.ttl` would be
accepted and not kept, so it is refused.
"""

from __future__ import annotations

import pyarrow as pa

from storage_engine.errors import InvalidOption
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.options import option_value

TTL, TIME_COLUMN = "table.kv.ttl", "table.kv.ttl.time-column"


def row_ttl_ms(descriptor: TableDescriptor) -> int | None:
    """How long a row lives after its time; None: for ever."""
    ttl: int | None = option_value(descriptor.options, TTL)
    return ttl


def may_outlive(descriptor: TableDescriptor) -> bool:
    """Whether rows may have left the table without a -D. True also of -1: an option cannot be taken back, and rows may have gone before."""
    return TTL in descriptor.options


def check_row_ttl(descriptor: TableDescriptor, where: str) -> None:
    """Errors: InvalidOption for options of rows on a log table, a time column that holds no time, or a time below `table.log.ttl`."""
    column = descriptor.options.get(TIME_COLUMN)
    if TTL not in descriptor.options:
        if column is not None:
            raise InvalidOption(f"{TIME_COLUMN} has no effect without {TTL}", where=where, next_step=f"Add '{TTL}', for example '90d'.")
        return
    if not descriptor.has_primary_key:
        what = f"{TTL} is for rows of a primary-key table"
        raise InvalidOption(what, where=where, next_step="A log expires by 'table.log.ttl'.")
    if column is not None:
        fitting = [c.name for c in descriptor.columns if pa.types.is_int64(c.arrow.type) or pa.types.is_timestamp(c.arrow.type)]
        if column not in fitting:
            hint = f"Name a BIGINT (milliseconds since 1970) or a TIMESTAMP: {', '.join(fitting) or 'there is none'}."
            raise InvalidOption(f"{TIME_COLUMN} = {column!r} is no column that holds a time", where=where, next_step=hint)
    ttl, log_ttl = row_ttl_ms(descriptor), option_value(descriptor.options, "table.log.ttl")
    if ttl is not None and (log_ttl is None or ttl < log_ttl):
        hint = f"Set 'table.log.ttl' (now {descriptor.options.get('table.log.ttl', '7d')}) to no more than it."
        raise InvalidOption(f"{TTL}: rows go only after the changelog they lie in has expired", where=where, next_step=hint)
