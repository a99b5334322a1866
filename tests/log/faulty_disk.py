"""A disk that loses power at the n-th sync, fails the n-th call of an operation, or runs full.

It works on real files. What survives power loss is tracked beside them: a file's bytes as of its last fdatasync, a directory's
names as of its last sync. As in Linux, pages that a failed fdatasync could not write count as clean afterwards.
`after_power_loss` writes what the medium would hold into a new directory.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from storage_engine.log.disk import Disk

Fate = Literal["whole", "lost", "torn"]
FATES: tuple[Fate, ...] = ("whole", "lost", "torn")
SECTOR_BYTES = 64  # small, so that a torn write is torn inside frames


class PowerLost(Exception):
    """The machine is off: no operation answers any more. Not an OSError, so no code under test may handle it."""


class _Inode:
    """A file's bytes on the medium, and the sectors that look written but are not: a failed sync marks pages clean."""

    def __init__(self, synced: bytes) -> None:
        self.synced = synced
        self.dropped: set[int] = set()


class FaultyDisk(Disk):
    """A Disk below `root` with planned faults.

    crash_at_sync   the n-th fdatasync or directory sync does not return: PowerLost
    fail            (operation, n) -> errno of that operation's n-th call; a write first writes half of its bytes
    space           bytes that all files together may take; a write beyond writes what fits and raises ENOSPC
    """

    def __init__(
        self,
        root: Path,
        *,
        crash_at_sync: int | None = None,
        fail: Mapping[tuple[str, int], int] | None = None,
        space: int | None = None,
        seed: int = 0,
    ) -> None:
        self.root = root
        self.crash_at_sync = crash_at_sync
        self.fail = dict(fail or {})
        self.space = space
        self.calls: Counter[str] = Counter()
        self.n_faults = 0
        self.crashed = False
        self._random = random.Random(seed)
        self._live: dict[Path, _Inode] = {}
        self._open: dict[int, tuple[Path, _Inode]] = {}
        for path in root.rglob("*"):
            if path.is_file():
                self._live[path] = _Inode(path.read_bytes())
        self._named = dict(self._live)  # names on the medium

    # operations of Disk

    def open_file(self, path: Path) -> int:
        self._enter("open_file")
        fd = super().open_file(path)
        inode = self._live.setdefault(path, _Inode(b""))
        self._open[fd] = (path, inode)
        return fd

    def write(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        data = b"".join(bytes(memoryview(buffer).cast("B")) for buffer in buffers if memoryview(buffer).nbytes)
        self._open[fd][1].dropped.difference_update(range(offset // SECTOR_BYTES, -(-(offset + len(data)) // SECTOR_BYTES)))
        try:
            self._enter("write")
        except OSError:
            super().write(fd, [data[: len(data) // 2]], offset)
            raise
        if self.space is not None:
            taken = sum(path.stat().st_size for path in self._live)
            fits = self.space - taken + max(0, self.size(fd) - offset)
            if len(data) > fits:
                super().write(fd, [data[: max(0, fits)]], offset)
                self.n_faults += 1
                raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(fd, [data], offset)

    def fdatasync(self, fd: int) -> None:
        _, inode = self._open[fd]
        live = os.pread(fd, self.size(fd), 0)
        sectors = range(0, len(live), SECTOR_BYTES)
        try:
            self._sync("fdatasync")
        except OSError:
            size = SECTOR_BYTES
            inode.dropped.update(at // size for at in sectors if live[at : at + size] != inode.synced[at : at + size])
            raise
        synced = bytearray(live)
        for at in sectors:
            if at // SECTOR_BYTES in inode.dropped:
                synced[at : at + SECTOR_BYTES] = inode.synced[at : at + SECTOR_BYTES].ljust(len(live[at : at + SECTOR_BYTES]), b"\0")
        inode.synced = bytes(synced)

    def truncate(self, fd: int, size: int) -> None:
        self._enter("truncate")
        super().truncate(fd, size)

    def close(self, fd: int) -> None:
        self._open.pop(fd)
        super().close(fd)

    def rename(self, source: Path, target: Path) -> None:
        self._enter("rename")
        super().rename(source, target)
        self._live[target] = self._live.pop(source)

    def unlink(self, path: Path) -> None:
        self._enter("unlink")
        super().unlink(path)
        del self._live[path]

    def sync_directory(self, directory: Path) -> None:
        self._sync("sync_directory")
        for path in [path for path in self._named if path.parent == directory]:
            del self._named[path]
        self._named.update({path: inode for path, inode in self._live.items() if path.parent == directory})

    # faults

    @property
    def n_syncs(self) -> int:
        return self.calls["fdatasync"] + self.calls["sync_directory"]

    def _enter(self, operation: str) -> None:
        if self.crashed:
            raise PowerLost
        self.calls[operation] += 1
        code = self.fail.get((operation, self.calls[operation]))
        if code is not None:
            self.n_faults += 1
            raise OSError(code, os.strerror(code))

    def _sync(self, operation: str) -> None:
        self._enter(operation)
        if self.n_syncs == self.crash_at_sync:
            self.n_faults += 1
            self.crashed = True
            raise PowerLost

    def after_power_loss(self, unsynced: Fate, target: Path) -> Path:
        """Write what the medium holds into `target`, a new directory; the fate of what was not synced is `unsynced`."""
        self.crashed = True
        for fd in list(self._open):
            self.close(fd)
        names = dict(self._named)
        if unsynced == "whole":
            names = dict(self._live)
        elif unsynced == "torn":
            for path in sorted(self._named.keys() ^ self._live.keys()):
                if self._random.random() < 0.5:
                    names = {**names, path: self._live[path]} if path in self._live else {k: v for k, v in names.items() if k != path}
        for directory in [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]:
            (target / directory.relative_to(self.root)).mkdir(parents=True, exist_ok=True)
        paths_of = {id(inode): path for path, inode in self._live.items()}
        for path, inode in names.items():
            live = paths_of[id(inode)].read_bytes() if id(inode) in paths_of else inode.synced
            (target / path.relative_to(self.root)).write_bytes(self._medium(inode.synced, live, unsynced))
        return target

    def _medium(self, synced: bytes, live: bytes, unsynced: Fate) -> bytes:
        if unsynced == "whole" or synced == live:
            return live
        if unsynced == "lost":
            return synced
        size = len(live) if self._random.random() < 0.5 else self._random.randint(*sorted((len(synced), len(live))))
        out = bytearray(size)
        for at in range(0, size, SECTOR_BYTES):
            old, new = synced[at : at + SECTOR_BYTES], live[at : at + SECTOR_BYTES]
            sector = old if old == new else self._random.choice([old, new, new, self._random.randbytes(SECTOR_BYTES)])
            sector = sector[: size - at]
            out[at : at + len(sector)] = sector
        return bytes(out)
