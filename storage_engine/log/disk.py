"""Disk: the only door to the file system for everything under a store directory.

Owner: log, kv and engine code calls it; a test replaces it to lose power, run full or flip bytes.
Holds: a method returns after the whole effect, or raises OSError; nothing is cached or buffered here.
Durability is explicit: bytes are safe after `fdatasync`, names (create, rename, unlink) after `sync_directory`.
Reads of log files are memory maps: an unreadable sector of the medium ends the process, it never returns wrong bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage_engine.errors import StoreLocked

_BUFFERS_PER_WRITE_MAX = 1024  # IOV_MAX of Linux
_PID_BYTES = 32  # of the lock file


class DirectoryLock:
    """An exclusive lock on a directory, held by one open file until `release` or the end of the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Give the directory free; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Disk:
    """The real file system. Files are named by path, open files by descriptor; offsets and sizes are bytes."""

    # open files
    def open_file(self, path: Path) -> int:
        """A descriptor for reading and writing; the file is created if it does not exist (call `sync_directory` then)."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        """Write all buffers one after another at `offset`; the number of bytes.

        Buffers are anything with the buffer protocol; they are handed to the kernel as they are, not joined.
        Errors: OSError (ENOSPC, EIO, ...); part of the bytes may then be in the file.
        """
        views = [view.cast("B") for view in map(memoryview, buffers) if view.nbytes]
        position = offset
        while views:
            written = os.pwritev(fd, views[:_BUFFERS_PER_WRITE_MAX], position)
            if written == 0:
                raise OSError(errno.EIO, "the disk accepted no bytes")
            position += written
            done = 0
            while done < len(views) and written >= views[done].nbytes:
                written -= views[done].nbytes
                done += 1
            del views[:done]
            if written:
                views[0] = views[0][written:]
        return position - offset

    def fdatasync(self, fd: int) -> None:
        """Make the file's bytes and size survive power loss."""
        os.fdatasync(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def close(self, fd: int) -> None:
        os.close(fd)

    # whole files
    def file_size(self, path: Path) -> int:
        return path.stat().st_size

    def map(self, path: Path) -> pa.Buffer:
        """The file's present bytes, mapped read only. The buffer keeps the mapping alive, also when the file is removed."""
        if path.stat().st_size == 0:
            return pa.py_buffer(b"")
        # Arrow's mapping, not Python's: the latter keeps a descriptor open for as long as any row refers to it
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()

    def read(self, path: Path, offset: int, n_bytes: int) -> pa.Buffer:
        """A copy of up to `n_bytes` bytes from `offset` on; fewer where the file ends."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return pa.py_buffer(os.pread(fd, n_bytes, offset))
        finally:
            os.close(fd)

    def read_file(self, path: Path) -> bytes | None:
        """The file's bytes; None if there is no such file."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def replace_file(self, path: Path, buffers: Sequence[Any]) -> None:
        """Put `buffers` at `path` so that after any crash the old or the new file is there, whole."""
        temporary = path.with_name(path.name + ".tmp")
        fd = self.open_file(temporary)
        try:
            self.truncate(fd, 0)
            self.write(fd, buffers, 0)
            self.fdatasync(fd)
        finally:
            self.close(fd)
        self.rename(temporary, path)
        self.sync_directory(path.parent)

    # directories
    def exists(self, path: Path) -> bool:
        """Whether a file or directory has this name."""
        return path.exists()

    def is_directory(self, path: Path) -> bool:
        return path.is_dir()

    def make_directory(self, path: Path) -> None:
        """Create a directory and those above it; existing ones are fine. Their names survive power loss."""
        missing = [path, *path.parents]
        missing = [directory for directory in missing if not directory.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for directory in reversed(missing):
            self.sync_directory(directory.parent)

    def list(self, directory: Path) -> list[str]:
        """Names in a directory, sorted."""
        return sorted(os.listdir(directory))

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """A second name for a file's bytes. Errors: OSError, also where the file system has no links between these places."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory. Errors: OSError when it holds anything."""
        os.rmdir(path)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all that is in it."""
        for name in self.list(path):
            entry = path / name
            if self.is_directory(entry):
                self.remove_tree(entry)
            else:
                self.unlink(entry)
        self.remove_directory(path)

    def sync_directory(self, directory: Path) -> None:
        """Make names created, renamed or removed in a directory survive power loss."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, path: Path) -> DirectoryLock:
        """Take the lock file `path` for this process.

        Errors: StoreLocked with the pid of the holder. The lock ends with the process, however it ends.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, _PID_BYTES, 0).decode("ascii", "replace").strip()
            os.close(fd)
            pid = int(text) if text.isdecimal() else None
            raise StoreLocked(
                f"the directory is in use by process {pid if pid is not None else '(unknown)'}",
                where=str(path.parent),
                next_step="Stop that process, or connect to its server instead of opening the directory.",
                pid=pid,
            ) from None
        os.pwrite(fd, f"{os.getpid()}\n".encode().ljust(_PID_BYTES), 0)  # in place: a full disk can be opened, too
        return DirectoryLock(fd)
