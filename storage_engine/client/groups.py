"""Consumer groups: which member reads which bucket, and what people do with groups: list, describe, reset, drop.

A group is named by a consumer and a table; its progress belongs to the owner consumer:NAME:TABLE.
Holds: under one generation every bucket belongs to one member, whatever partitions come and go; the shares of two members in a partition
       differ by one bucket at most. A reset or a drop fences the members: what they commit from the offsets before is refused.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from storage_engine.api import CONSUMER_PREFIX, Backend, CommitRequest, Progress
from storage_engine.errors import OffsetOutOfRange, UnknownTable, UserError
from storage_engine.schema.descriptor import Offsets, TableBucket

if TYPE_CHECKING:
    from storage_engine.client.table import Table

ResetTo = Literal["earliest", "latest"] | datetime | Offsets
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")

DESCRIPTION = pa.schema(
    [
        ("consumer", pa.string()), ("table", pa.string()), ("partition", pa.string()), ("bucket", pa.int32()), ("member", pa.string()),
        ("committed", pa.int64()), ("start_offset", pa.int64()), ("end_offset", pa.int64()), ("lag_rows", pa.int64()),
        ("lag_ms", pa.int64()),
    ]
)  # fmt: skip
"""One row per bucket. committed is null before the first commit; lag_ms is the age of the oldest row not committed, 0 without any."""


@dataclass(frozen=True)
class ConsumerGroup:
    """A group as it is recorded.

    members       those of the newest generation; empty for a name with one reader
    committed_ms  when offsets were last committed, or members came or went; None: before the store kept it
    """

    name: str
    table: str
    generation: int
    members: tuple[str, ...]
    committed_ms: int | None
    offsets: Offsets


def owner_of(name: str, table: str) -> str:
    """The owner of a group's progress. Errors: UserError for a name that cannot be one.

    >>> owner_of("audit", "shop.orders")
    'consumer:audit:shop.orders'
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise UserError(
            f"{str(name)[:80]!r} cannot name a consumer", where="consumer", next_step="Use 1 to 200 letters, digits, _, - or dots."
        )
    return f"{CONSUMER_PREFIX}{name}:{table}"


def generation_of(recorded: Progress | None) -> int:
    """How often the members of a group have changed; 0 before the first joins."""
    return int(recorded.detail.get("generation", 0)) if recorded else 0


def member_of(bucket: TableBucket, members: Sequence[str]) -> str:
    """The member that reads a bucket: the buckets of a partition go round the members, each partition from another one on.

    >>> [member_of(TableBucket("", bucket), ["a", "b"]) for bucket in range(4)]
    ['a', 'b', 'a', 'b']
    """
    return members[(bucket.bucket + zlib.crc32(bucket.partition.encode())) % len(members)]


def find(backend: Backend, name: str | None = None, table: str | None = None) -> list[ConsumerGroup]:
    """The groups, by name and table; of one name, or of one table."""
    prefix = CONSUMER_PREFIX if name is None else f"{CONSUMER_PREFIX}{name}:"
    found = []
    for owner, recorded in backend.progress(prefix).items():
        group_name, _, of_table = owner.removeprefix(CONSUMER_PREFIX).partition(":")
        if table is None or of_table == table:
            detail = recorded.detail
            members = tuple(detail.get("members", ()))
            offsets = recorded.offsets.get(of_table, {})
            found.append(ConsumerGroup(group_name, of_table, generation_of(recorded), members, detail.get("committed_ms"), dict(offsets)))
    return sorted(found, key=lambda group: (group.name, group.table))


def require(backend: Backend, name: str, table: str | None = None) -> list[ConsumerGroup]:
    """As find. Errors: UnknownTable when there is none."""
    found = find(backend, name, table)
    if not found:
        on = f" on {table}" if table else ""
        raise UnknownTable(f"there is no consumer {name}{on}", where="consumers", next_step="SHOW CONSUMERS lists them.")
    return found


def describe(backend: Backend, group: ConsumerGroup) -> pa.Table:
    """What a group has read, bucket by bucket: DESCRIPTION."""
    rows = []
    for bucket in backend.bucket_statistics(group.table, group.offsets).to_pylist():
        at = TableBucket(bucket["partition"], bucket["bucket"])
        committed = group.offsets.get(at)
        rows.append(
            {
                "consumer": group.name,
                "table": group.table,
                "partition": at.partition,
                "bucket": at.bucket,
                "member": member_of(at, group.members) if group.members else None,
                "committed": committed,
                "start_offset": bucket["start_offset"],
                "end_offset": bucket["end_offset"],
                "lag_rows": bucket["end_offset"] - (bucket["start_offset"] if committed is None else committed),
                "lag_ms": bucket["unread_ms"] or 0,
            }
        )
    return pa.Table.from_pylist(rows, DESCRIPTION)


def reset(backend: Backend, table: Table, name: str, to: ResetTo) -> Offsets:
    """Move a group's committed offsets; the offsets it has then. A group that is not there yet begins with them.

    to      "earliest", "latest", the first rows committed at or after a time, or offsets per bucket (others stay as they are)
    Errors: OffsetOutOfRange for offsets that the log does not hold and for a time in the future; ProgressConflict when the group moved
            at this very moment.
    """
    owner = owner_of(name, table.name)
    recorded = backend.progress(owner).get(owner)
    version = backend.version()
    offsets = _target(table, to)
    if isinstance(to, dict) and recorded:
        offsets = {**recorded.offsets.get(table.name, {}), **offsets}
    generation = generation_of(recorded)
    detail = {"generation": generation + 1}
    expected = recorded.offsets if recorded else {}
    progress = Progress(owner, {table.name: offsets}, expected, detail, version, generation=generation)
    backend.commit(CommitRequest((), (progress,)))
    return offsets


def drop(backend: Backend, name: str, table: str, *, if_exists: bool = False) -> None:
    """Forget a group: its offsets and its generation. Errors: UnknownTable when there is none."""
    if not backend.drop_progress(owner_of(name, table)) and not if_exists:
        require(backend, name, table)


def _target(table: Table, to: ResetTo) -> Offsets:
    if not isinstance(to, dict):
        return table.offsets(to)
    earliest, latest = table.offsets("earliest"), table.offsets("latest")
    for bucket, offset in to.items():
        if not earliest.get(bucket, 0) <= offset <= latest.get(bucket, -1):
            held = f"{earliest[bucket]} to {latest[bucket]}" if bucket in latest else "no such bucket"
            raise OffsetOutOfRange(
                f"offset {offset} of bucket {bucket} cannot be set, the log holds {held}",
                where=table.name,
                next_step="Choose offsets that the log holds, or write EARLIEST or LATEST.",
            )
    return to
