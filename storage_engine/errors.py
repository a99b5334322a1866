"""Errors: everything the platform raises on purpose, in one tree.

The three parents answer the caller's question, "is it worth trying again?". Leaves are refusals named by
their condition. Every error says what happened, where, and what to do next; data rides on attributes.

    UserError       change the call
    RetriableError  the same call may work later
    DamageError     the bytes are wrong
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlashlakeError(Exception):
    """Root of everything raised on purpose: `what` happened, `where`, and the `next_step` for the reader."""

    def __init__(self, what: str, *, where: str, next_step: str) -> None:
        super().__init__(f"{what} [{where}]. {next_step}")
        self.what = what
        self.where = where
        self.next_step = next_step


class ServerFault(FlashlakeError):
    """The server met a bug of ours while it answered; nothing is known about the call's outcome. Its log holds the traceback."""


class UserError(FlashlakeError):
    """The call is wrong as it stands; repeating it cannot help."""


class RetriableError(FlashlakeError):
    """The same call may work later."""


class DamageError(FlashlakeError):
    """Bytes on disk or on the wire are not what was written."""


class StatementRefused(UserError):
    """SQL that cannot be parsed, bound or run; names the clause and the reason."""


class UnknownTable(UserError):
    """No table, view or job of that name."""


def unknown_table(name: str, known: Iterable[str]) -> UnknownTable:
    """The error for a table that does not exist; it names those that look alike."""
    alike = difflib.get_close_matches(name, dict.fromkeys(known), n=3)
    hint = f"Did you mean {' or '.join(alike)}?" if alike else "SHOW TABLES lists the tables; names are database.table."
    return UnknownTable(f"there is no table {name}", where="catalog", next_step=hint)


class AlreadyExists(UserError):
    """A table, view or job of that name exists, with another definition."""


class SchemaMismatch(UserError):
    """Rows do not fit the table: a column is unknown, missing, of another type, or null where it must not be."""


class BatchTooLarge(UserError):
    """Rows of one bucket in one commit exceed what a frame can hold."""


class InvalidOption(UserError):
    """An option is unknown, or its value is out of range."""


class InvalidPartition(UserError):
    """A value cannot name a partition, or the partition does not exist or is expired."""


class TooManyPartitions(UserError):
    """A table has as many partitions as the store allows it (`partitions_max`)."""


class OffsetOutOfRange(UserError):
    """The log does not hold the requested offsets (any more, or yet)."""


class UnsupportedByBackend(UserError):
    """The backend lacks a feature; names both."""


class ProgressConflict(UserError):
    """A commit's starting offsets are not the recorded ones: another worker runs the same job, or this one is stale."""


class LakeChanged(UserError):
    """A lake table was changed by someone else in a way that contradicts the recorded offsets."""


class ResultTooLarge(UserError):
    """An answer would hold more rows than the caller allows."""


class RequestTooLarge(UserError):
    """One call carries more bytes than one message may hold."""


class InvalidConfiguration(UserError):
    """A configuration key is unknown or its value is out of range."""


class UnknownUser(UserError):
    """No user or token of that name."""


class AuthenticationFailed(UserError):
    """The credentials are missing, wrong, expired or revoked; which of these is not said."""


class AccessDenied(UserError):
    """The user may see the object, and lacks the right that the call needs."""


class StoreLocked(RetriableError):
    """Another process has the store directory open (`pid`)."""

    def __init__(self, what: str, *, where: str, next_step: str, pid: int | None = None) -> None:
        super().__init__(what, where=where, next_step=next_step)
        self.pid = pid


class PartitionChanged(RetriableError):
    """A partition was dropped, or dropped and created again, while it was read: start again from the offsets of now."""


class TableAltered(RetriableError):
    """The table was altered while this change of it was made; make the change from the present descriptor."""


class OutOfOrderSequence(RetriableError):
    """A commit was sent behind another one of its writer, and that one is not the writer's newest in the store: nothing of it was done.

    last    the sequence of the writer's newest commit there, 0: none. Send everything again from the first commit without an answer.
    """

    def __init__(self, what: str, *, where: str, next_step: str, last: int = 0) -> None:
        super().__init__(what, where=where, next_step=next_step)
        self.last = last


class StoreUnavailable(RetriableError):
    """The server does not answer, is stopping, or a port is taken; or the disk does not let a store be opened or read."""


class Backpressure(RetriableError):
    """The server has taken as much as it may hold; nothing of the call was done. Try again after `retry_after_ms`."""

    def __init__(self, what: str, *, where: str, next_step: str, retry_after_ms: int = 100) -> None:
        super().__init__(what, where=where, next_step=next_step)
        self.retry_after_ms = retry_after_ms


class WriteFailed(RetriableError):
    """The disk refused a write (full, or an I/O error). Nothing of the commit is visible; reads go on.

    is_absent   True: nothing of it is there, nor ever will be. False: it may be found, whole, after the next start, unless a later
                write succeeds first; a retry with the same write id is applied once either way.
    """

    def __init__(self, what: str, *, where: str, next_step: str, is_absent: bool = True) -> None:
        super().__init__(what, where=where, next_step=next_step)
        self.is_absent = is_absent


class DamagedFrame(DamageError):
    """A checksum does not match: `file` and `offset` say where. Nothing of it is returned as data."""

    def __init__(self, what: str, *, where: str, next_step: str, file: str = "", offset: int = -1) -> None:
        super().__init__(what, where=where, next_step=next_step)
        self.file = file
        self.offset = offset


class MalformedMessage(DamageError):
    """A peer sent something that is not a message of this protocol."""


class UnsupportedFormatVersion(DamageError):
    """A directory or file carries a format name or version that this program does not read."""
