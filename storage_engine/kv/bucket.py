"""KvBucket: one bucket of a primary-key table. The changelog holds the rows, this holds where the current ones are.

Owner: the engine, one writer at a time; lookups may run beside it and see what was committed.
State: key index, prefix index and the keys whose hash another key has taken: all derived, from changelog frames or a snapshot.
Holds: upsert() and delete() change nothing here. stage() shows a change to later calls of the same transaction, commit() to
       readers, rollback() to nobody.
Never: writes the log, gives out offsets, decides what is durable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage_engine.errors import ResultTooLarge, SchemaMismatch
from storage_engine.kv.auto_increment import Ids
from storage_engine.kv.batch import group_keys
from storage_engine.kv.change import KvChange
from storage_engine.kv.columns import columns_differ, contiguous, key_columns, take
from storage_engine.kv.distinct import all_distinct
from storage_engine.kv.incoming import HashKeys, Keys, distinct_rows
from storage_engine.kv.key_index import MISSING, Bools, Hashes, Int64s, KeyCopy, KeyIndex, nonzero
from storage_engine.kv.merge import ChangePlan, overwrites_blindly, plan_delete, plan_overwrite, plan_upsert, retracted_columns
from storage_engine.kv.prefix_index import PrefixIndex, joined
from storage_engine.kv.prefix_order import prefix_order
from storage_engine.kv.replay import homeless_rows, net_changes, runs_of_frames
from storage_engine.kv.single import hash_key
from storage_engine.kv.spilled_index import IndexChange, SpilledIndex, SpilledPrefixes
from storage_engine.kv.staged import REMOVED, StagedChanges
from storage_engine.log.frame import DELETE, INSERT
from storage_engine.schema.descriptor import TableDescriptor
from storage_engine.schema.integer_keys import integer_hashes
from storage_engine.schema.keys import encode_keys, hash64

_GONE_PREFIXES_MIN: Final = 1024


class FetchRows(Protocol):
    """Rows at `offsets` (m,), in that order: all columns of the table, or those named."""

    def __call__(self, offsets: Int64s, columns: list[str] | None = None, /) -> pa.Table: ...


@dataclass(frozen=True)
class KvSnapshot:
    """All that a bucket derives, as it was at one moment; it can be read once.

    prefixes  prefix entries in pieces (m, 2): hash of the prefix, hash of the key
    homeless  encoded keys whose hash belongs to another key, with their offsets
    """

    keys: KeyCopy
    prefixes: Iterable[Hashes]
    homeless: dict[bytes, int]


class _Located:
    """Where the keys of a batch are: offsets (n,), `homeless` (n,): the key's hash belongs to another key."""

    def __init__(self, found: Bools, current: pa.Table, homeless: Bools) -> None:
        self.found = found
        self.current = current
        self.homeless = homeless


class KvBucket:
    """Keys of one bucket.

    fetch_rows  offsets (m,) -> the rows stored there, in that order, in the descriptor's schema. It must also serve offsets that
                were staged in the transaction under way.
    ids         gives auto-increment ids; required when the descriptor has such a column and rows are upserted.
    hash_keys   64-bit hash of encoded keys; equal hashes of different keys are told apart by the stored rows.
    """

    def __init__(self, descriptor: TableDescriptor, fetch_rows: FetchRows, *, ids: Ids | None = None, hash_keys: HashKeys = hash64) -> None:
        self.descriptor = descriptor
        self._fetch_rows = fetch_rows
        self._ids = ids
        self._hash_keys = hash_keys
        self._index: KeyIndex | SpilledIndex = KeyIndex()
        self._homeless: dict[bytes, int] = {}
        self._homeless_hashes: Hashes = np.empty(0, np.uint64)
        self._prefixes: PrefixIndex | SpilledPrefixes | None = PrefixIndex() if descriptor.is_prefix_lookup_possible else None
        self._n_gone = 0
        self._journal: list[IndexChange] | None = None
        self._staged = StagedChanges()

    @property
    def n_keys(self) -> int:
        return self._index.n_keys + len(self._homeless)

    @property
    def n_bytes(self) -> int:
        """Bytes of memory held by the indexes."""
        return self._index.n_bytes + (self._prefixes.n_bytes if self._prefixes else 0)

    @property
    def spilled_bytes(self) -> int | None:
        """Bytes on disk of indexes that have been moved there; None: they are in memory."""
        if not isinstance(self._index, SpilledIndex):
            return None
        return self._index.disk_bytes + (self._prefixes.disk_bytes if isinstance(self._prefixes, SpilledPrefixes) else 0)

    def alter(self, descriptor: TableDescriptor) -> None:
        """The table's columns have changed; fetch_rows answers in the new schema from now on."""
        self.descriptor = descriptor

    # reads

    def get(self, keys: pa.Table) -> tuple[pa.Table, Bools]:
        """Current rows by key, as committed.

        Shapes: keys (n,) with the key columns, repeats allowed -> rows (n,), all null where not found; found (n,).
        """
        names = self.descriptor.physical_primary_key
        encoded = encode_keys(key_columns(keys, names))
        located = self._locate(keys, encoded, self._hash(encoded), is_writer=False)
        found = located.found
        if found.all():
            return located.current, found
        return located.current.take(pa.array(np.cumsum(found) - 1, mask=~found)), found

    def find_one(self, key: bytes) -> int | None:
        """Offset of the row that an encoded key's hash leads to, MISSING without one; the caller compares the row's key.

        None: only get() can tell, because hashes are shared.
        """
        if self._homeless or self._hash_keys is not hash64:
            return None
        return self._index.get_one(hash_key(key))

    def find(self, keys: Sequence[pa.Array]) -> Int64s | None:
        """As find_one(), for the key columns (n,) of n keys."""
        if self._homeless or self._hash_keys is not hash64:
            return None
        return self._index.get(self._hash_columns(keys))

    def prefix_get(self, prefixes: pa.Table, limit: int | None = None, rows_max: int | None = None) -> tuple[pa.Table, Int64s]:
        """Rows whose key begins with the bucket key given, ordered by prefix, then by encoded key.

        Shapes: prefixes (n,) with the bucket-key columns -> rows (m,), position (m,) of each row's prefix; at most `limit` rows of each.
        Cost:   where `limit` cuts, only the keys of the rows left out are read.
        Errors: ResultTooLarge when m would exceed `rows_max`; no row has been read then.
        """
        assert self._prefixes is not None, f"{self.descriptor.name} has no prefix to look up"
        names = self.descriptor.bucket_keys
        position, hashes = self._prefixes.find(self._hash_columns(key_columns(prefixes, names)))
        offsets = self._index.get(hashes)
        present = offsets >= 0
        if not present.all():
            position, offsets = position[present], offsets[present]
        if self._homeless:
            extra = np.fromiter(list(self._homeless.values()), np.int64)
            position = np.r_[position, np.repeat(np.arange(prefixes.num_rows), len(extra))]
            offsets = np.r_[offsets, np.tile(extra, prefixes.num_rows)]
        if len(offsets) == 0:
            return self.descriptor.arrow_schema.empty_table(), position
        n_wanted = len(offsets) if limit is None else int(np.minimum(np.bincount(position), limit).sum())
        if rows_max is not None and n_wanted > rows_max:
            raise ResultTooLarge(
                f"{prefixes.num_rows} prefixes have {n_wanted:,} rows, more than {rows_max:,}",
                where=f"table {self.descriptor.name}",
                next_step="Ask for fewer prefixes, set a limit per prefix, or raise rows_max.",
            )
        is_cut = n_wanted < len(offsets)
        rows = self._fetch_rows(offsets, list(self.descriptor.physical_primary_key) if is_cut else None)
        matches = ~_keys_differ(rows, prefixes.take(pa.array(position)), names)
        if not matches.all():
            rows, position, offsets = rows.filter(pa.array(matches)), position[matches], offsets[matches]
            if len(offsets) == 0:
                return self.descriptor.arrow_schema.empty_table(), position
        order = prefix_order(position, key_columns(rows, self.descriptor.physical_primary_key[len(names) :]))
        if limit is None and order is None:
            return rows, position
        order = np.arange(len(position)) if order is None else order
        if limit is not None:
            sorted_position = position[order]
            rank = np.arange(len(order)) - np.searchsorted(sorted_position, sorted_position, side="left")
            order = order[rank < limit]
        return self._fetch_rows(offsets[order]) if is_cut else rows.take(pa.array(order)), position[order]

    def current_offsets(self) -> Int64s:
        """Offsets of all current rows, ascending: what a read of the whole bucket fetches."""
        offsets = self._index.offsets()
        if self._homeless:
            offsets = np.r_[offsets, np.fromiter(list(self._homeless.values()), np.int64)]
        return np.sort(offsets)

    # writes

    def retract(self, rows: pa.Table, columns: Sequence[str] | None = None) -> KvChange:
        """What taking these rows back out of sums and counts changes; a key without a row gets one with negative values.

        Errors: as merge.retracted_columns; SchemaMismatch when a sum leaves its type.
        """
        return self.upsert(rows, retracted_columns(self.descriptor, rows, columns), takes_back=True)

    def upsert(
        self, rows: pa.Table, columns: Sequence[str] | None = None, *, keys: pa.Array | None = None, takes_back: bool = False
    ) -> KvChange:
        """What upserting these rows changes, in this transaction's sight. A blind write reads no stored values, only their keys.

        Shapes: rows (n,) conformed to the table, keys may repeat; `columns` are the target columns of a partial update; `keys` (n,)
                are the encoded keys, where the caller has them.
        Errors: SchemaMismatch when the auto-increment column is written, a sum leaves its type, or a value is no bitmap.
        """
        descriptor = self.descriptor
        targets = self._targets(rows, columns)
        incoming, keys, hashes = distinct_rows(descriptor, rows, targets, self._hash_keys, keys)
        if overwrites_blindly(descriptor, targets):
            located = self._locate(incoming, keys, hashes, is_writer=True, columns=list(descriptor.physical_primary_key))
            return self._change(plan_overwrite(descriptor, incoming, located.homeless & ~located.found), keys, hashes, located)
        located = self._locate(incoming, keys, hashes, is_writer=True)
        new_ids = None
        n_new = len(hashes) - located.current.num_rows
        if self._ids is not None and n_new:
            new_ids = self._ids.take(n_new)
        plan = plan_upsert(descriptor, incoming, located.current, located.found, targets, new_ids, takes_back=takes_back)
        return self._change(plan, keys, hashes, located)

    def delete(self, keys: pa.Table, columns: Sequence[str] | None = None) -> KvChange:
        """What deleting these keys changes; with `columns`, what setting these columns to null changes.

        Errors: StatementRefused where the table disables deletes; SchemaMismatch when a target column is NOT NULL.
        """
        encoded = encode_keys(key_columns(keys, self.descriptor.physical_primary_key))
        hashes = self._hash(encoded)
        groups = group_keys(encoded, hashes)
        if groups is not None:
            keys, encoded, hashes = keys.take(pa.array(groups.first)), take(encoded, groups.first), hashes[groups.first]
        located = self._locate(keys, encoded, hashes, is_writer=True)
        return self._change(plan_delete(self.descriptor, located.current, located.found, columns), encoded, hashes, located)

    # moves between buckets

    def leaving(self, rows: pa.Table) -> KvChange:
        """Current rows of this bucket go to another one: -D for each, with its key alone.

        Shapes: rows (n,) in the table's schema.
        """
        names = self.descriptor.physical_primary_key
        encoded = encode_keys(key_columns(rows, names))
        homeless: dict[int, bytes] = {}
        hashes = self._hash(encoded)
        for row in np.flatnonzero(np.isin(hashes, self._homeless_hashes)):
            if (key := encoded[int(row)].as_py()) in self._homeless:
                homeless[int(row)] = key
        schema = self.descriptor.arrow_schema
        kept = set(self.descriptor.primary_key)
        columns = [contiguous(rows, item.name) if item.name in kept else pa.nulls(rows.num_rows, item.type) for item in schema]
        return KvChange(pa.Table.from_arrays(columns, schema=schema), np.full(rows.num_rows, DELETE, np.uint8), hashes, homeless)

    def arriving(self, rows: pa.Table) -> KvChange:
        """Rows of another bucket come here: +I for each. Their keys are not here, though their hashes may be.

        Shapes: rows (n,) in the table's schema, each key once.
        """
        encoded = encode_keys(key_columns(rows, self.descriptor.physical_primary_key))
        hashes = self._hash(encoded)
        taken = self._staged.find(hashes, self._index.get(hashes)) != MISSING
        homeless = taken.copy()
        _mark_twins(hashes, taken, homeless)
        lost = {int(row): encoded[int(row)].as_py() for row in np.flatnonzero(homeless)}
        return KvChange(rows, np.full(rows.num_rows, INSERT, np.uint8), hashes, lost)

    def stage(self, change: KvChange, base_offset: int) -> None:
        """The change will be at base_offset .. base_offset + n_rows: later upserts and deletes of this transaction see it."""
        self._staged.add(change, base_offset)

    def commit(self) -> None:
        """The transaction is in the log: what was staged becomes current."""
        for change, base_offset in self._staged.take():
            self._settle(change, base_offset)

    def rollback(self) -> None:
        """The transaction failed: forget what was staged."""
        self._staged.take()

    def apply(self, change: KvChange, base_offset: int) -> None:
        """stage() and commit() of a transaction with one operation on this bucket."""
        assert not self._staged, "a transaction is under way in this bucket"
        self._settle(change, base_offset)

    @property
    def n_homeless(self) -> int:
        """Keys whose hash belongs to another key: what they are known by depends on the order in which all rows of the hash came."""
        return len(self._homeless)

    def expire(self, keys: pa.Table, offsets: Int64s) -> int:
        """Forget rows that a time to live has ended: keys (n,) with the key columns, the rows at `offsets` (n,). Their number.

        A key that has moved on since keeps its row.
        """
        hashes = self._hash(encode_keys(key_columns(keys, self.descriptor.physical_primary_key)))
        stands = self._index.get(hashes) == offsets
        self._forget(hashes[stands])
        return int(stands.sum())

    # recovery

    def rebuild(self, frames: Iterable[tuple[int | Int64s, npt.NDArray[np.uint8] | None, pa.Table]]) -> None:
        """Follow the changelog from where this bucket stands: of each frame, in order, its base_offset, change types and rows.

        Shapes: change types (n,), rows (n,) with at least the key columns; of a sparse frame the offsets (n,) instead of a base_offset.
        """
        for run in runs_of_frames(frames, self.descriptor.physical_primary_key):
            hashes = self._hash(run.keys)
            stored = self._index.get(hashes)
            if net := net_changes(run.types, hashes, stored, self._homeless_hashes):
                if self._prefixes is not None:
                    self._enter_prefixes(run.rows, net.begun, hashes[net.begun])
                self._put(hashes[net.live], run.offsets[net.live])
                self._forget(hashes[net.gone])
                continue
            for start, stop in run.frames:
                part = slice(start, stop)
                types, own, keys = run.types[part], hashes[part], run.keys.slice(start, stop - start)
                homeless = homeless_rows(types, keys, own, self._index.get(own), self._homeless, self._homeless_hashes)
                change = KvChange(run.rows.slice(start, stop - start), types, own, homeless)
                self._settle(change, run.offsets[part], is_replay=True)

    def snapshot(self) -> KvSnapshot:
        """What rebuild() would find from the first frame on, as arrays to store in a checkpoint."""
        assert not self._staged, "a transaction is under way in this bucket"
        return KvSnapshot(self._index.copy(), self._prefixes.pieces() if self._prefixes else (), dict(self._homeless))

    def restore(self, snapshot: KvSnapshot) -> None:
        """Stand where snapshot() was taken."""
        self._index = KeyIndex.from_copy(snapshot.keys)
        self._set_homeless(dict(snapshot.homeless))
        if self._prefixes is not None:
            self._prefixes = PrefixIndex()
            self._prefixes.add(*joined(snapshot.prefixes))

    # moving the indexes, while writers go on

    def begin_move(self) -> KvSnapshot:
        """The indexes as they are; what changes in them from now on is kept for take_changes(). The writer must not write meanwhile."""
        self._journal = []
        return self.snapshot()

    def take_changes(self) -> list[IndexChange]:
        """What has changed since begin_move() or the last call. The writer must not write meanwhile."""
        changes, self._journal = self._journal or [], []
        return changes

    def end_move(self, index: SpilledIndex | None, prefixes: SpilledPrefixes | None) -> None:
        """Use these from now on, which have followed all changes; None: stay with the present ones. The writer must not write meanwhile."""
        self._journal = None
        if index is not None:
            self._index = index
            self._prefixes = prefixes

    def close(self) -> None:
        """Give up indexes on disk, and their files."""
        for index in (self._index, self._prefixes):
            if isinstance(index, SpilledIndex | SpilledPrefixes):
                index.close()

    # inside

    def _hash_columns(self, keys: Sequence[pa.Array]) -> Hashes:
        hashes = integer_hashes(keys[0]) if len(keys) == 1 and self._hash_keys is hash64 else None
        return self._hash(encode_keys(keys)) if hashes is None else nonzero(hashes)

    def _hash(self, keys: pa.Array) -> Hashes:
        return nonzero(self._hash_keys(keys))

    def _targets(self, rows: pa.Table, columns: Sequence[str] | None) -> Sequence[str] | None:
        """The columns to write; without explicit ones, an auto-increment column is left to the store."""
        serial = self.descriptor.auto_increment_column
        if serial is None:
            return columns
        assert self._ids is not None, f"{self.descriptor.name} has an auto-increment column and the bucket got no ids"
        if (columns is not None and serial in columns) or (
            columns is None and serial in rows.column_names and rows[serial].null_count < rows.num_rows
        ):
            raise SchemaMismatch(
                f"column {serial} is filled by the store",
                where=f"table {self.descriptor.name}",
                next_step="Leave it out of the rows and the target columns.",
            )
        return [name for name in (columns or self.descriptor.column_names) if name != serial]

    def _locate(self, rows: pa.Table, keys: Keys, hashes: Hashes, *, is_writer: bool, columns: list[str] | None = None) -> _Located:
        """Find rows (n,) with encoded keys: which exist, their stored rows, and which keys have lost their hash to another key.

        `columns` are those of the stored rows to read, the key's among them; None: all.

        A writer also sees what is staged; its keys are distinct.
        """
        offsets = self._index.get_to_put(hashes) if is_writer else self._index.get(hashes)
        staged: Mapping[bytes, int] = {}
        if is_writer and self._staged:
            offsets = self._staged.find(hashes, offsets)
            staged = self._staged.homeless()
        homeless = np.zeros(len(hashes), np.bool_)
        if self._homeless or staged:
            self._locate_homeless(keys, hashes, offsets, homeless, staged)
        found = offsets >= 0
        at = np.flatnonzero(found)
        current = self._fetch_rows(offsets[at], columns) if len(at) else self.descriptor.arrow_schema.empty_table()
        if len(at):
            strangers = _keys_differ(
                current, rows if len(at) == len(hashes) else rows.take(pa.array(at)), self.descriptor.physical_primary_key
            )
            if strangers.any():
                homeless[at[strangers]] = True
                found[at[strangers]] = False
                current = current.filter(pa.array(~strangers))
        if is_writer:
            _mark_twins(hashes, found, homeless)
        return _Located(found, current, homeless)

    def _locate_homeless(self, keys: Keys, hashes: Hashes, offsets: Int64s, homeless: Bools, staged: Mapping[bytes, int]) -> None:
        suspects = np.isin(hashes, self._homeless_hashes)
        if staged:
            suspects |= np.isin(hashes, self._hashes_of(staged))
        for row in np.flatnonzero(suspects):
            key = keys[int(row)].as_py()
            offset = staged.get(key, self._homeless.get(key, REMOVED))
            if offset != REMOVED:
                offsets[row], homeless[row] = offset, True

    def _change(self, plan: ChangePlan, keys: Keys, hashes: Hashes, located: _Located) -> KvChange:
        homeless: dict[int, bytes] = {}
        if located.homeless.any():
            homeless = {int(row): keys[int(plan.source[row])].as_py() for row in np.flatnonzero(located.homeless[plan.source])}
        return KvChange(plan.rows, plan.change_types, hashes[plan.source], homeless)

    def _settle(self, change: KvChange, at: int | Int64s, *, is_replay: bool = False) -> None:
        """Make a change current, whose rows lie at offset `at` and after, or at the offsets `at`."""
        if change.n_rows == 0:
            return
        offsets = at if isinstance(at, np.ndarray) else at + np.arange(change.n_rows)
        is_live, is_gone = change.outcome()
        if self._prefixes is not None:
            begun = change.change_types == INSERT
            if is_replay or self.descriptor.is_wal:  # a +U may be a key's first row: replay.py says when
                begun |= is_live & (self._index.get(change.hashes) == MISSING)
            at = np.flatnonzero(begun)
            self._enter_prefixes(change.rows, at, change.hashes[at])
        if change.homeless:
            homeless = dict(self._homeless)
            for row, key in change.homeless.items():
                if is_live[row]:
                    homeless[key] = int(offsets[row])
                elif is_gone[row]:
                    homeless.pop(key, None)
                is_live[row] = is_gone[row] = False
            self._set_homeless(homeless)
        live = np.flatnonzero(is_live)
        self._put(change.hashes[live], offsets[live])
        self._forget(change.hashes[is_gone])

    def _set_homeless(self, homeless: dict[bytes, int]) -> None:
        self._homeless_hashes = self._hashes_of(homeless)
        self._homeless = homeless

    def _hashes_of(self, homeless: Mapping[bytes, int]) -> Hashes:
        return self._hash(pa.array(list(homeless), pa.binary())) if homeless else np.empty(0, np.uint64)

    def _enter_prefixes(self, rows: pa.Table, inserted: Int64s, hashes: Hashes) -> None:
        assert self._prefixes is not None
        if len(inserted):
            encoded = encode_keys([take(contiguous(rows, name), inserted) for name in self.descriptor.bucket_keys])
            prefixes = self._hash(encoded)
            self._prefixes.add(prefixes, hashes)
            if self._journal is not None:
                self._journal.append(IndexChange(prefixes=prefixes, hashes=hashes))

    def _put(self, hashes: Hashes, offsets: Int64s) -> None:
        self._index.put(hashes, offsets)
        if self._journal is not None:
            self._journal.append(IndexChange(hashes=hashes, offsets=offsets))

    def _forget(self, hashes: Hashes) -> None:
        """Remove keys. Their prefix entries do no harm; once they are the majority, one pass drops them."""
        if len(hashes) == 0:
            return
        self._index.remove(hashes)
        if self._journal is not None:
            self._journal.append(IndexChange(hashes=hashes))
        if self._prefixes is not None:
            self._n_gone += len(hashes)
            if self._n_gone > _GONE_PREFIXES_MIN and 2 * self._n_gone > self._prefixes.n_entries:
                self._prefixes.keep(lambda keys: self._index.get(keys) >= 0)
                self._n_gone = 0


def _keys_differ(left: pa.Table, right: pa.Table, names: Sequence[str]) -> Bools:
    differ = np.zeros(left.num_rows, np.bool_)
    for name in names:
        differ |= columns_differ(contiguous(left, name), contiguous(right, name))
    return differ


def _mark_twins(hashes: Hashes, found: Bools, homeless: Bools) -> None:
    """Of new keys that share a hash, all but the first are homeless."""
    if all_distinct(hashes):
        return
    new = np.flatnonzero(~found & ~homeless)
    order = np.argsort(hashes[new], kind="stable")
    ordered = hashes[new][order]
    repeats = ordered[1:] == ordered[:-1]
    if repeats.any():
        homeless[new[order[1:][repeats]]] = True
