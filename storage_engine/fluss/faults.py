"""Faults: the client's errors as this project's, by their code. Pure.

Source: error codes of Apache Fluss (fluss.ErrorCode); -1 is an unexpected fault of the server, -2 one of the client.
"""

from __future__ import annotations

import fluss

from storage_engine.errors import (
    AlreadyExists,
    FlashlakeError,
    InvalidOption,
    InvalidPartition,
    OffsetOutOfRange,
    ServerFault,
    StatementRefused,
    StoreUnavailable,
    UnknownTable,
    UserError,
    WriteFailed,
)

_CODES = fluss.ErrorCode
_OF_CODE: dict[int, tuple[type[FlashlakeError], str]] = {
    _CODES.TABLE_NOT_EXIST: (UnknownTable, "SHOW TABLES lists the tables; names are database.table."),
    _CODES.DATABASE_NOT_EXIST: (UnknownTable, "SHOW TABLES lists the tables; names are database.table."),
    _CODES.TABLE_ALREADY_EXIST: (AlreadyExists, "Write CREATE TABLE IF NOT EXISTS, or drop it first."),
    _CODES.PARTITION_NOT_EXISTS: (InvalidPartition, "SHOW the table's partitions with partitions()."),
    _CODES.PARTITION_SPEC_INVALID_EXCEPTION: (InvalidPartition, "Name a value for the partition column."),
    _CODES.PARTITION_MAX_NUM_EXCEPTION: (InvalidPartition, "Drop partitions, or raise the cluster's limit."),
    _CODES.LOG_OFFSET_OUT_OF_RANGE_EXCEPTION: (OffsetOutOfRange, "Read between offsets('earliest') and offsets('latest')."),
    _CODES.INVALID_CONFIG_EXCEPTION: (InvalidOption, "Leave the option out: this Fluss cluster does not know it or its value."),
    _CODES.INVALID_TABLE_EXCEPTION: (InvalidOption, "Change the table's definition."),
    _CODES.DELETION_DISABLED_EXCEPTION: (StatementRefused, "Create the table with 'table.delete.behavior' = 'allow' or 'ignore'."),
    _CODES.AUTHENTICATE_EXCEPTION: (UserError, "Give the cluster's user and password."),
    _CODES.AUTHORIZATION_EXCEPTION: (UserError, "Ask for the right on this table."),
    _CODES.KV_STORAGE_EXCEPTION: (WriteFailed, "Look at the tablet server's log and disk."),
    _CODES.LOG_STORAGE_EXCEPTION: (WriteFailed, "Look at the tablet server's log and disk."),
    _CODES.STORAGE_EXCEPTION: (WriteFailed, "Look at the tablet server's log and disk."),
}


def translate(error: fluss.FlussError, *, where: str) -> FlashlakeError:
    """The error of this project that says the same; the first line of the client's text is kept."""
    text = (error.message or str(error)).strip().splitlines()[0]
    known = _OF_CODE.get(error.error_code)
    if known is not None:
        kind, remedy = known
        return kind(text, where=where, next_step=remedy)
    if error.is_retriable:
        return StoreUnavailable(text, where=where, next_step="Try again; look at the cluster when it goes on.")
    if error.error_code == _CODES.CLIENT_ERROR:
        return UserError(text, where=where, next_step="Change the call.")
    return ServerFault(f"{text} (Fluss code {error.error_code})", where=where, next_step="Look at the Fluss servers' logs.")
