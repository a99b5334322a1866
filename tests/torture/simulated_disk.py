"""A disk in memory that takes the place of the real one for a whole store: it loses power, fails, runs full and flips bits, by a seed.

Beside what the running system sees it keeps what the medium holds: a file's bytes and size as of its last fdatasync, a directory's names
as of its last sync. As in Linux, pages that a failed fdatasync could not write count as clean afterwards. `map` aliases the live bytes,
as a memory map does: a mapping sees later writes.
Faults are planned with `plan_*` and happen at the n-th call from then on. `cut power` and `kill` end every later call with PowerLost until
`restart`, which says what the medium kept.
"""

from __future__ import annotations

import copy
import errno
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from storage_engine.errors import StoreLocked
from storage_engine.log.disk import DirectoryLock, Disk

Fate = Literal["whole", "lost", "torn"]
FATES: tuple[Fate, ...] = ("whole", "lost", "torn")
CHANGES = (
    "open_file", "write", "fdatasync", "truncate", "rename", "unlink", "sync_directory", "make_directory", "link", "remove_directory",
)  # fmt: skip
READS = ("map", "read", "read_file", "list", "file_size", "size")
_CAPACITY = 1 << 16


class PowerLost(BaseException):
    """The machine is off, or the process dead: no call answers any more. No code under test may handle it."""


class File:
    """A file's live bytes (`data[:size]`), what the medium holds, and sectors that look written but are not."""

    def __init__(self, synced: bytes = b"") -> None:
        self.data = bytearray(max(_CAPACITY, 2 * len(synced)))
        self.data[: len(synced)] = synced
        self.size = len(synced)
        self.synced = synced
        self.dropped: set[int] = set()
        self._outgrown: list[bytearray] = []  # mappings may alias them: as of a memory map, they see what is written in their range

    @property
    def live(self) -> bytes:
        return bytes(memoryview(self.data)[: self.size])

    def put(self, offset: int, data: bytes) -> None:
        stop = offset + len(data)
        if stop > len(self.data):
            grown = bytearray(2 * stop)
            grown[: self.size] = memoryview(self.data)[: self.size]
            self._outgrown.append(self.data)
            self.data = grown
        self._set(offset, data)
        self.size = max(self.size, stop)

    def cut(self, size: int) -> None:
        if size < self.size:
            self._set(size, bytes(self.size - size))
        self.size = size

    def _set(self, offset: int, data: bytes) -> None:
        for buffer in (self.data, *self._outgrown):
            n_bytes = min(len(data), len(buffer) - offset)
            if n_bytes > 0:
                buffer[offset : offset + n_bytes] = data[:n_bytes]


class Directory:
    """A directory's names as the system sees them, and as the medium has them."""

    def __init__(self) -> None:
        self.live: dict[str, File | Directory] = {}
        self.synced: dict[str, File | Directory] = {}


@dataclass
class Fault:
    """A planned fault: at the `at`-th call that is one of `operations`, `times` times in a row."""

    kind: Literal["cut", "error"]
    at: int
    operations: frozenset[str]
    code: int = 0
    times: int = 1


@dataclass
class Counts:
    """What a disk did to its store."""

    faults: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)


class SimulatedDisk(Disk):
    """A Disk in memory. `space`: bytes that all files together may take (None: no limit)."""

    def __init__(self, seed: int = 0, *, sector_bytes: int = 64, counts: Counts | None = None) -> None:
        self.root = Directory()
        self.space: int | None = None
        self.is_off = False
        self.counts = counts or Counts()
        self.sector_bytes = sector_bytes
        self._random = random.Random(seed)
        self._open: dict[int, File] = {}
        self._next_fd = 1_000_000
        self._locks: set[Path] = set()
        self._faults: list[Fault] = []

    # plans

    def plan(self, fault: Fault) -> None:
        self._faults.append(fault)

    def clear_plans(self) -> None:
        """The faults are over, and there is space again."""
        self._faults = []
        self.space = None

    @property
    def is_failing(self) -> bool:
        """Whether an error may come that has been planned: a call may fail now."""
        return self.space is not None or any(fault.kind == "error" and fault.times > 0 for fault in self._faults)

    @property
    def is_failing_reads(self) -> bool:
        return any(fault.kind == "error" and fault.times > 0 and fault.operations & set(READS) for fault in self._faults)

    def restart(self, fate: Fate | Literal["killed"]) -> None:
        """Switch on again. killed: only the process died, the system's view stays, and so does what is not on the medium yet."""
        if fate != "killed":
            self._lose(self.root, fate)
        self.is_off = False
        self._open = {}
        self._locks = set()
        self.clear_plans()

    def clone(self) -> SimulatedDisk:
        """The same disk as it is now, to be treated otherwise; no file is open on it."""
        other = SimulatedDisk(self._random.randrange(1 << 30), sector_bytes=self.sector_bytes, counts=self.counts)
        other.root = copy.deepcopy(self.root)
        return other

    def files(self, under: Path) -> dict[Path, File]:
        """Every file below a directory, by its path."""
        found: dict[Path, File] = {}
        waiting = [(under, self._entry(under))]
        while waiting:
            path, entry = waiting.pop()
            if isinstance(entry, File):
                found[path] = entry
            elif entry is not None:
                waiting += [(path / name, child) for name, child in entry.live.items()]
        return dict(sorted(found.items()))

    @property
    def n_bytes(self) -> int:
        return sum({id(file): file.size for file in self.files(Path("/")).values()}.values())

    def _lose(self, directory: Directory, fate: Fate) -> None:
        names = {**directory.live, **directory.synced}
        kept: dict[str, File | Directory] = {}
        for name in sorted(names):
            live, synced = directory.live.get(name), directory.synced.get(name)
            entry = {"whole": live, "lost": synced, "torn": self._random.choice([live, synced])}[fate]
            if entry is not None:
                kept[name] = entry
        directory.live, directory.synced = kept, dict(kept)
        for entry in kept.values():
            if isinstance(entry, Directory):
                self._lose(entry, fate)
            elif entry.synced != entry.live or entry.dropped:
                medium = self._medium(entry, fate)
                entry.__init__(medium)  # type: ignore[misc]  # old mappings stay with the old bytes

    def _medium(self, file: File, fate: Fate) -> bytes:
        synced, live = file.synced, file.live
        if fate == "lost":
            return synced
        if fate == "whole":
            return self._without_dropped(file, live)
        size = len(live) if self._random.random() < 0.5 else self._random.randint(*sorted((len(synced), len(live))))
        out = bytearray(size)
        step = self.sector_bytes
        for at in range(0, size, step):
            old, new = synced[at : at + step].ljust(step, b"\0"), live[at : at + step].ljust(step, b"\0")
            sector = old
            if old != new and at // step not in file.dropped:
                # a sector is written whole or not at all; one that never held durable bytes may hold anything
                garbage = self._random.randbytes(step) if at >= len(synced) else old
                sector = self._random.choice([old, new, new, garbage])
            out[at : at + step] = sector[: size - at]
        return bytes(out)

    def _without_dropped(self, file: File, live: bytes) -> bytes:
        out = bytearray(live)
        step = self.sector_bytes
        for sector in file.dropped:
            n_bytes = len(live[sector * step : (sector + 1) * step])
            old = file.synced[sector * step : (sector + 1) * step].ljust(n_bytes, b"\0")[:n_bytes]
            out[sector * step : sector * step + n_bytes] = old
        return bytes(out)

    # faults

    def _enter(self, operation: str) -> None:
        if self.is_off:
            raise PowerLost
        self.counts.calls[operation] += 1
        for fault in self._faults:
            if operation not in fault.operations:
                continue
            fault.at -= 1
            if fault.at >= 0 or fault.times == 0:
                continue
            fault.times -= 1
            if fault.kind == "cut":
                self.is_off = True
                self.counts.faults[f"power cut or kill at {operation}"] += 1
                raise PowerLost
            self.counts.faults[f"{errno.errorcode[fault.code]} from {operation}"] += 1
            raise OSError(fault.code, os.strerror(fault.code))

    # names

    def _entry(self, path: Path) -> File | Directory | None:
        entry: File | Directory | None = self.root
        for part in path.parts[1:]:
            entry = entry.live.get(part) if isinstance(entry, Directory) else None
        return entry

    def _directory(self, path: Path) -> Directory:
        entry = self._entry(path)
        if not isinstance(entry, Directory):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return entry

    def _file(self, path: Path) -> File:
        entry = self._entry(path)
        if not isinstance(entry, File):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return entry

    # open files

    def open_file(self, path: Path) -> int:
        parent = self._directory(path.parent)
        entry = parent.live.get(path.name)
        if entry is None:
            self._enter("open_file")
            entry = parent.live[path.name] = File()
        elif self.is_off:
            raise PowerLost
        assert isinstance(entry, File), f"{path} is a directory"
        self._next_fd += 1
        self._open[self._next_fd] = entry
        return self._next_fd

    def write(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        data = b"".join(bytes(memoryview(buffer).cast("B")) for buffer in buffers if memoryview(buffer).nbytes)
        file = self._open[fd]
        if self.space is not None:
            fits = self.space - self.n_bytes + max(0, file.size - offset)
            if len(data) > fits:
                self._wrote(file, offset, data[: max(0, fits)])
                self.counts.faults["ENOSPC from write"] += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            self._enter("write")
        except (OSError, PowerLost):
            if data:
                self._wrote(file, offset, data[: self._random.randrange(len(data) + 1)])
            raise
        self._wrote(file, offset, data)
        return len(data)

    def _wrote(self, file: File, offset: int, data: bytes) -> None:
        if data:
            step = self.sector_bytes
            file.dropped.difference_update(range(offset // step, -(-(offset + len(data)) // step)))
            file.put(offset, data)

    def fdatasync(self, fd: int) -> None:
        file = self._open[fd]
        live = file.live
        try:
            self._enter("fdatasync")
        except OSError:
            step = self.sector_bytes
            changed = [at // step for at in range(0, len(live), step) if live[at : at + step] != file.synced[at : at + step]]
            file.dropped.update(sector for sector in changed if self._random.random() < 0.8)
            raise
        file.synced = self._without_dropped(file, live)

    def size(self, fd: int) -> int:
        self._enter("size")
        return self._open[fd].size

    def truncate(self, fd: int, size: int) -> None:
        self._enter("truncate")
        file = self._open[fd]
        if size > file.size:
            file.put(size - 1, b"\0")
        file.cut(size)
        file.dropped = {sector for sector in file.dropped if sector * self.sector_bytes < size}

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)

    # whole files

    def file_size(self, path: Path) -> int:
        self._enter("file_size")
        return self._file(path).size

    def map(self, path: Path) -> pa.Buffer:
        self._enter("map")
        file = self._file(path)
        return pa.py_buffer(memoryview(file.data)[: file.size].toreadonly())

    def read(self, path: Path, offset: int, n_bytes: int) -> pa.Buffer:
        self._enter("read")
        return pa.py_buffer(self._file(path).live[offset : offset + n_bytes])

    def read_file(self, path: Path) -> bytes | None:
        self._enter("read_file")
        entry = self._entry(path)
        return entry.live if isinstance(entry, File) else None

    # directories

    def exists(self, path: Path) -> bool:
        return self._entry(path) is not None

    def is_directory(self, path: Path) -> bool:
        return isinstance(self._entry(path), Directory)

    def make_directory(self, path: Path) -> None:
        missing = [directory for directory in [path, *path.parents] if not self.exists(directory)]
        for directory in reversed(missing):
            self._enter("make_directory")
            self._directory(directory.parent).live[directory.name] = Directory()
        for directory in reversed(missing):
            self.sync_directory(directory.parent)

    def list(self, directory: Path) -> list[str]:
        self._enter("list")
        return sorted(self._directory(directory).live)

    def rename(self, source: Path, target: Path) -> None:
        self._enter("rename")
        before, after = self._directory(source.parent), self._directory(target.parent)
        if source.name not in before.live:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        after.live[target.name] = before.live.pop(source.name)

    def link(self, source: Path, target: Path) -> None:
        self._enter("link")
        self._directory(target.parent).live[target.name] = self._file(source)

    def unlink(self, path: Path) -> None:
        self._enter("unlink")
        self._file(path)
        del self._directory(path.parent).live[path.name]

    def remove_directory(self, path: Path) -> None:
        self._enter("remove_directory")
        if self._directory(path).live:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        del self._directory(path.parent).live[path.name]

    def sync_directory(self, directory: Path) -> None:
        self._enter("sync_directory")
        entry = self._directory(directory)
        entry.synced = dict(entry.live)

    def lock(self, path: Path) -> DirectoryLock:
        if self.is_off:
            raise PowerLost
        if path in self._locks:
            raise StoreLocked("the directory is in use", where=str(path.parent), next_step="Close it first.")
        self._directory(path.parent).live.setdefault(path.name, File())
        self._locks.add(path)
        return _Lock(self, path)


class _Lock(DirectoryLock):
    def __init__(self, disk: SimulatedDisk, path: Path) -> None:
        self._disk = disk
        self._path = path

    def release(self) -> None:
        self._disk._locks.discard(self._path)
