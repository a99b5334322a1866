"""Record: what every commit of the tierer says about itself inside the Delta log.

A commit carries, in its commitInfo, the store version and the next offset per bucket that the table then covers, the
epoch of the tierer and the id of the pair (store table, lake table); and an app transaction `flashlake:<lake id>` whose
version is the store version. delta-rs only records the app transaction, it does not compare it: that is delta.py's work.

Never: writes anything. Reading goes back over the log until it meets a record; on the way it reports who else changed data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalake import CommitProperties, DeltaTable, Transaction

from storage_engine.schema.descriptor import Offsets, TableBucket

LAKE_ID = "flashlake.lake_id"
_VERSION = "flashlake.version"
_EPOCH = "flashlake.epoch"
_OFFSETS = "flashlake.offsets"
_KIND = "flashlake.kind"
_COLUMNS = "flashlake.columns"
_DETACHED = "flashlake.detached"


@dataclass(frozen=True)
class LakeRecord:
    """One commit of the tierer.

    version  store version that the table's content equals
    offsets  next offset per bucket: everything below is in the table
    columns  field id of a column of the store -> its column in the lake (mapping.py)
    epoch    of the tierer that wrote it; an older epoch may not write any more
    kind     create, append, merge, replace, remove, note, compact, columns, vacuum or restore
    detached partitions that the store dropped after they were tiered: the lake keeps those rows, no changelog describes them
    delta_version  Delta's own number of the commit; -1 before it is written
    """

    lake_id: str
    version: int
    offsets: Offsets
    epoch: int
    kind: str
    columns: Mapping[int, str]
    delta_version: int = -1
    detached: tuple[str, ...] = ()

    @property
    def app(self) -> str:
        return f"flashlake:{self.lake_id}"

    def commit_properties(self) -> CommitProperties:
        """Metadata and app transaction of the commit. No retries: a commit that came between must be looked at first."""
        metadata = {
            LAKE_ID: self.lake_id,
            _VERSION: str(self.version),
            _EPOCH: str(self.epoch),
            _OFFSETS: encode_offsets(self.offsets),
            _KIND: self.kind,
            _COLUMNS: json.dumps(self.columns),
        }
        if self.detached:
            metadata[_DETACHED] = json.dumps(self.detached)
        return CommitProperties(custom_metadata=metadata, max_commit_retries=0, app_transactions=[Transaction(self.app, self.version)])


@dataclass(frozen=True)
class LogEntry:
    """One commit of the Delta log, as far as tiering cares.

    record    what the tierer recorded in it, None for a commit of somebody else
    n_rows_added  rows in the files it added, as far as their statistics say
    changes_data  it adds or removes rows (a compaction does not)
    """

    delta_version: int
    record: LakeRecord | None
    changes_data: bool
    added: tuple[str, ...] = ()
    n_rows_added: int = 0
    written_by: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def encode_offsets(offsets: Offsets) -> str:
    """Offsets as JSON, keys "partition/bucket".

    >>> encode_offsets({TableBucket("", 0): 7})
    '{"/0": 7}'
    """
    return json.dumps({str(bucket): offset for bucket, offset in sorted(offsets.items())})


def decode_offsets(text: str) -> Offsets:
    """The inverse of encode_offsets."""
    return {TableBucket.parse(bucket): int(offset) for bucket, offset in json.loads(text).items()}


def _decode_columns(text: str, table_path: Path, delta_version: int) -> dict[int, str]:
    """The mapping of a record. A bare number is from before columns could be renamed or dropped: the ids of the first n columns
    were 0 to n - 1, in the order of the lake's schema, system columns aside.
    """
    value = json.loads(text)
    if isinstance(value, int):
        fields = DeltaTable(str(table_path), version=delta_version).schema().fields
        names = [item.name for item in fields if not item.name.startswith("__")]
        return dict(enumerate(names[:value]))
    return {int(field_id): name for field_id, name in value.items()}


def read_entry(table_path: Path, delta_version: int) -> LogEntry | None:
    """The commit of that number, None when its file is not there (not yet written, or cleaned up)."""
    try:
        text = (table_path / "_delta_log" / f"{delta_version:020d}.json").read_text()
    except FileNotFoundError:
        return None
    info: dict[str, Any] = {}
    changes_data = False
    added: list[str] = []
    n_rows_added = 0
    for line in text.splitlines():
        action = json.loads(line)
        info = action.get("commitInfo", info)
        for name in ("add", "remove"):
            file = action.get(name)
            if file is None:
                continue
            changes_data = changes_data or bool(file.get("dataChange", True))
            if name == "add":
                added.append(file["path"])
                n_rows_added += int(json.loads(file.get("stats") or "{}").get("numRecords", 0))
    record = None
    if LAKE_ID in info:
        record = LakeRecord(
            lake_id=info[LAKE_ID],
            version=int(info[_VERSION]),
            offsets=decode_offsets(info[_OFFSETS]),
            epoch=int(info[_EPOCH]),
            kind=info[_KIND],
            columns=_decode_columns(info[_COLUMNS], table_path, delta_version),
            delta_version=delta_version,
            detached=tuple(json.loads(info.get(_DETACHED, "[]"))),
        )
    written_by = f"{info.get('operation', 'unknown operation')} by {info.get('engineInfo', 'an unknown engine')}"
    return LogEntry(delta_version, record, changes_data, tuple(added), n_rows_added, written_by, info)


def entries_back(table_path: Path, delta_version: int) -> Iterator[LogEntry]:
    """Commits from `delta_version` down, as long as their files are there."""
    for number in range(delta_version, -1, -1):
        entry = read_entry(table_path, number)
        if entry is None:
            return
        yield entry
