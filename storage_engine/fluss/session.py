"""Session: the connection to a cluster and the open tables of it, used on the loop thread only.

Owner of: the pyfluss connection. It is replaced when a write did not end in time, because its writer then repeats that write for ever.
State: open tables by name, each checked against the cluster's table id before use, so that a re-created table is never mistaken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import fluss

from storage_engine.errors import StoreUnavailable, UnknownTable
from storage_engine.fluss.mapping import descriptor_of, path_of
from storage_engine.schema.descriptor import TableBucket, TableDescriptor

LOOKUPS_AT_ONCE = 128
CLOSE_S = 5.0
POLL_S = 0.02
NEWS_S = 5.0
STALE_S = 1.0

logger = logging.getLogger(__name__)


@dataclass
class OpenTable:
    """A table of the cluster. `lookupers` hold one kind of lookup each; `lookup_turn` keeps their rounds apart."""

    descriptor: TableDescriptor
    path: fluss.TablePath
    handle: fluss.FlussTable
    lookupers: dict[tuple[str, ...], list[Any]] = field(default_factory=dict)
    lookup_turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class FlussSession:
    """One connection, its admin and its tables."""

    def __init__(self, servers: str, properties: dict[str, str]) -> None:
        self._servers = servers
        self._properties = properties
        self._connection: fluss.FlussConnection | None = None
        self._tables: dict[str, OpenTable] = {}
        self._connecting = asyncio.Lock()
        self.write_turn = asyncio.Lock()

    async def connection(self) -> fluss.FlussConnection:
        async with self._connecting:
            if self._connection is None:
                self._connection = await fluss.FlussConnection.create(self._config())
            return self._connection

    def _config(self) -> fluss.Config:
        config = fluss.Config({"bootstrap.servers": self._servers, **self._properties})
        # A write ends with a flush: nothing is gained by waiting, and batches must not end while they are filled (writes.py).
        config.writer_batch_timeout_ms = 600_000
        config.writer_dynamic_batch_size_enabled = False
        config.writer_retries = 20
        return config

    async def admin(self) -> fluss.FlussAdmin:
        return (await self.connection()).get_admin()

    async def drop_connection(self) -> None:
        """Leave the connection behind; the next call makes a new one."""
        broken, self._connection = self._connection, None
        self._tables.clear()
        if broken is not None:
            try:
                await asyncio.wait_for(broken.close(), CLOSE_S)
            except (TimeoutError, fluss.FlussError):
                logger.warning("a connection to %s did not close in %s s and is left behind", self._servers, CLOSE_S)

    async def table(self, name: str) -> OpenTable:
        """The table, as the cluster has it now. Errors: UnknownTable."""
        path = fluss.TablePath(*path_of(name))
        try:
            info = await (await self.admin()).get_table_info(path)
        except fluss.FlussError as error:
            if error.error_code in (fluss.ErrorCode.TABLE_NOT_EXIST, fluss.ErrorCode.DATABASE_NOT_EXIST):
                self._tables.pop(name, None)
                raise UnknownTable(f"there is no table {name}", where="catalog", next_step="tables() lists the tables.") from error
            raise
        known = self._tables.get(name)
        if known is not None and (known.descriptor.table_id, known.descriptor.schema_id) == (info.table_id, info.schema_id):
            return known
        handle = await self._handle(path)
        opened = OpenTable(descriptor_of(name, info), path, handle)
        self._tables[name] = opened
        return opened

    async def _handle(self, path: fluss.TablePath) -> fluss.FlussTable:
        """Open a table that exists; a tablet server may learn of a new one a moment later than the coordinator."""
        deadline = time.monotonic() + NEWS_S
        while True:
            try:
                return await (await self.connection()).get_table(path)
            except fluss.FlussError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(POLL_S)

    async def partitions(self, table: OpenTable) -> dict[str, int]:
        """Partition ids by name; empty for a table without partitions."""
        if not table.descriptor.partition_keys:
            return {}
        return {info.partition_name: info.partition_id for info in await (await self.admin()).list_partition_infos(table.path)}

    async def offsets(self, table: OpenTable, which: str, timestamp_ms: int | None = None) -> dict[TableBucket, int]:
        """Offsets of every bucket of every partition: earliest, latest, or by timestamp."""
        if timestamp_ms is not None:
            spec = fluss.OffsetSpec.timestamp(timestamp_ms)
        else:
            spec = fluss.OffsetSpec.earliest() if which == "earliest" else fluss.OffsetSpec.latest()
        buckets = list(range(table.descriptor.n_buckets))
        admin = await self.admin()
        if not table.descriptor.partition_keys:
            answer = await admin.list_offsets(table.path, buckets, spec)
            return {TableBucket("", bucket): offset for bucket, offset in sorted(answer.items())}
        names = sorted(await self.partitions(table))
        answers = await asyncio.gather(*(admin.list_partition_offsets(table.path, name, buckets, spec) for name in names))
        return {
            TableBucket(name, bucket): offset
            for name, answer in zip(names, answers, strict=True)
            for bucket, offset in sorted(answer.items())
        }

    async def has_leader(self, table: OpenTable) -> bool:
        """Whether any bucket of a table without partitions answers."""
        admin, spec = await self.admin(), fluss.OffsetSpec.latest()
        for bucket in range(table.descriptor.n_buckets):
            try:
                await admin.list_offsets(table.path, [bucket], spec)
            except fluss.FlussError:
                continue
            return True
        return False

    async def await_leaders(self, table: OpenTable, partitions: list[str] | None, timeout_s: float) -> None:
        """Wait until every bucket answers. Errors: StoreUnavailable when one has no leader in time.

        A client that asked too early never asks again who leads a bucket: after STALE_S it is replaced by a new one.
        """
        stale = time.monotonic() + STALE_S
        deadline = time.monotonic() + timeout_s
        buckets, spec = list(range(table.descriptor.n_buckets)), fluss.OffsetSpec.latest()
        admin = await self.admin()
        while True:
            try:
                for name in [None] if partitions is None else partitions:
                    if name is None:
                        await admin.list_offsets(table.path, buckets, spec)
                    else:
                        await admin.list_partition_offsets(table.path, name, buckets, spec)
                return
            except fluss.FlussError as error:
                if time.monotonic() > deadline:
                    what = f"{table.descriptor.name} has a bucket without a leader after {timeout_s:g} s"
                    raise StoreUnavailable(what, where=self._servers, next_step="Look at the tablet servers; drop the table.") from error
            await asyncio.sleep(POLL_S)
            if time.monotonic() > stale:
                await self.drop_connection()
                admin, stale = await self.admin(), time.monotonic() + 5 * STALE_S
