"""Backup: a copy of a store as it was at one durable position of its log, taken while writers go on, and its way back.

A backup is a directory: BACKUP (one line of JSON: format, store format, version, position, files; then its crc32c), log/ with the files
of the log cut at the position, and CHECKPOINT. Files that the log has finished are hard links where the file system allows, unless
copies are asked for; the last one is always a copy. There is no FORMAT in it: a backup is not a store that can be opened and changed.
Holds: everything is written to TARGET.partial and renamed when all of it is durable: an interrupted backup is never taken for one.
       restore() gives a store whose every frame was checked, at exactly that version, or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import google_crc32c

from storage_engine.api import BackupInfo
from storage_engine.engine import checkpoint
from storage_engine.engine.fsck import check_store
from storage_engine.engine.state import UNREADABLE
from storage_engine.errors import AlreadyExists, DamagedFrame, UnsupportedFormatVersion, UserError, WriteFailed
from storage_engine.log.disk import Disk
from storage_engine.log.file_set import FileEntry
from storage_engine.log.format_file import FORMAT_NAME, FORMAT_VERSION, READABLE_VERSIONS, claim_directory
from storage_engine.log.log_file import file_name, start_of

MANIFEST: Final = "BACKUP"
BACKUP_FORMAT: Final = "flashlake-backup 1"
_COPY_BYTES: Final = 8 * 1024 * 1024
_OURS: Final = frozenset({MANIFEST, "CHECKPOINT", "LOCK", "FORMAT", "log", "index"})


@dataclass(frozen=True)
class Pinned:
    """A moment of a store: its log ended at `position`, which is durable, and lay in `files`; `checkpoint` holds the state there."""

    version: int
    position: int
    checkpoint: bytes
    files: Sequence[FileEntry]


def write_backup(disk: Disk, source: Path, target: Path, pinned: Pinned, *, links: bool = True) -> BackupInfo:
    """Copy the log below `pinned.position` to `target`.

    Errors: AlreadyExists when `target` holds anything; UserError for a relative path; WriteFailed when the disk refuses.
    """
    if not target.is_absolute():
        raise UserError(f"{target} is no absolute path", where="backup", next_step="Name the directory from / on.")
    try:
        partial = _begin(disk, target)
        lock = disk.lock(partial / "LOCK")
        try:
            files = []
            disk.make_directory(partial / "log")
            for start, stop in pinned.files:
                name = file_name(start)
                is_linked = links and stop != pinned.position and _link(disk, source / "log" / name, partial / "log" / name)
                if not is_linked:
                    _copy(disk, source / "log" / name, partial / "log" / name, stop - start)
                files.append([name, stop - start])
            disk.sync_directory(partial / "log")
            checkpoint.write(disk, partial, pinned.checkpoint)
            values = {"backup": BACKUP_FORMAT, "store": [FORMAT_NAME, FORMAT_VERSION], "version": pinned.version}
            disk.replace_file(partial / MANIFEST, [_signed(values | {"position": pinned.position, "files": files})])
            _finish(disk, partial, target)
        finally:
            lock.release()
    except OSError as error:
        raise WriteFailed(f"the backup was not written: {error}", where=str(target), next_step="Free space, then back up again.") from error
    return BackupInfo(str(target), pinned.version, pinned.position, sum(size for _, size in files))


def restore(backup: Path, directory: Path, *, disk: Disk | None = None) -> BackupInfo:
    """Make a store of a backup, checked frame by frame before it gets its name.

    Errors: AlreadyExists when `directory` holds anything; UserError when `backup` is none; DamagedFrame naming file and offset;
    UnsupportedFormatVersion; WriteFailed.
    """
    disk = disk or Disk()
    backup, directory = backup.absolute(), directory.absolute()
    manifest = _manifest(disk, backup)
    try:
        partial = _begin(disk, directory)
        claim_directory(disk, partial)
        disk.make_directory(partial / "log")
        for name, size in manifest["files"]:
            path = backup / "log" / name
            held = disk.file_size(path) if disk.exists(path) else 0
            if held != size:
                _damaged(f"the backup's file holds {held} bytes where {size} were written", path, held)
            _copy(disk, path, partial / "log" / name, size)
        disk.sync_directory(partial / "log")
        data = disk.read_file(backup / "CHECKPOINT")
        if data is not None:
            checkpoint.write(disk, partial, data)
        _require_whole(disk, partial, backup, manifest)
        _finish(disk, partial, directory)
    except OSError as error:
        raise WriteFailed(f"the store was not restored: {error}", where=str(directory), next_step="Free space, then try again.") from error
    return BackupInfo(str(directory), manifest["version"], manifest["position"], sum(size for _, size in manifest["files"]))


def _require_whole(disk: Disk, partial: Path, backup: Path, manifest: dict[str, Any]) -> None:
    report = check_store(partial, disk=disk)
    for finding in report.findings:
        path = backup / Path(finding.file).relative_to(partial)
        _damaged(finding.what.removeprefix("torn tail: "), path, finding.offset)
    if (report.end, report.version) != (manifest["position"], manifest["version"]):
        what = f"the backup's log ends at {report.end} (version {report.version}), it was taken at {manifest['position']}"
        _damaged(f"{what} (version {manifest['version']})", backup / MANIFEST, 0)


def _manifest(disk: Disk, backup: Path) -> dict[str, Any]:
    path = backup / MANIFEST
    data = disk.read_file(path)
    if data is None:
        hint = "Name a directory that `flashlake backup` wrote; one that ends in .partial was interrupted."
        raise UserError("there is no backup here", where=str(backup), next_step=hint)
    line, _, _ = data.partition(b"\n")
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict) or data != _signed(values):
        _damaged("the file does not match its checksum", path, 0)
    store = values.get("store")
    if values.get("backup") != BACKUP_FORMAT or store not in [[FORMAT_NAME, version] for version in READABLE_VERSIONS]:
        what = f"the backup has format {values.get('backup')!r} of a store {store}; this program reads {BACKUP_FORMAT!r} of "
        next_step = "Restore it with the program version that wrote it."
        raise UnsupportedFormatVersion(f"{what}{[FORMAT_NAME, FORMAT_VERSION]}", where=str(path), next_step=next_step)
    try:
        files = [[name, int(size)] for name, size in values["files"]]
        manifest = {"files": files, "version": int(values["version"]), "position": int(values["position"])}
    except UNREADABLE as error:
        _damaged(f"the file lacks what a backup says: {type(error).__name__}: {error}", path, 0)
    if any(start_of(name) is None or size < 0 for name, size in files):
        _damaged("the file names files that are no log files", path, 0)
    return manifest


def _signed(values: dict[str, Any]) -> bytes:
    line = json.dumps(values).encode() + b"\n"
    return line + f"crc32c {google_crc32c.value(line):08x}\n".encode()


def _begin(disk: Disk, target: Path) -> Path:
    """An empty TARGET.partial; what an interrupted run left there is removed. Errors: AlreadyExists, StoreLocked."""
    partial = target.with_name(target.name + ".partial")
    if disk.exists(target) and (not disk.is_directory(target) or disk.list(target)):
        raise AlreadyExists(f"{target} is not empty", where=str(target), next_step="Name a new directory; nothing is overwritten.")
    if disk.exists(partial):
        if not disk.is_directory(partial) or not _OURS.issuperset(name.removesuffix(".tmp") for name in disk.list(partial)):
            hint = "Remove it if it is yours, or name another directory."
            raise AlreadyExists(f"{partial} exists and is no interrupted copy", where=str(partial), next_step=hint)
        disk.lock(partial / "LOCK").release()
        disk.remove_tree(partial)
    disk.make_directory(partial)
    return partial


def _finish(disk: Disk, partial: Path, target: Path) -> None:
    if disk.exists(partial / "LOCK"):
        disk.unlink(partial / "LOCK")
    disk.sync_directory(partial)
    disk.rename(partial, target)
    disk.sync_directory(target.parent)


def _link(disk: Disk, source: Path, target: Path) -> bool:
    """False where the file system has no hard links between these places."""
    try:
        disk.link(source, target)
    except OSError:
        return False
    return True


def _copy(disk: Disk, source: Path, target: Path, n_bytes: int) -> None:
    """The first `n_bytes` bytes of a file into a new one, durable. Errors: OSError."""
    fd = disk.open_file(target)
    try:
        at = 0
        while at < n_bytes:
            part = disk.read(source, at, min(_COPY_BYTES, n_bytes - at))
            if part.size == 0:
                raise OSError(f"{source} ends at byte {at}, {n_bytes} were expected")
            at += disk.write(fd, [part], at)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)


def _damaged(what: str, path: Path, offset: int) -> NoReturn:
    next_step = "Restore from another backup."
    raise DamagedFrame(what, where=f"{path}, byte {offset}", next_step=next_step, file=str(path), offset=offset)
