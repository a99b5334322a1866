"""Log file: one file of the log, a 64-byte file header and then frames.

    0  magic "FLASHLOG"   8  crc32c of bytes 12..64   12  version (u32)   16  start position (u64)   24  zeros

Version 2: the first frame is a COMMIT whose record holds the whole state, so that nothing before the file is needed to recover.
A position is a byte of the whole log; a file named <20-digit start>.log holds the positions from start on, its own header included.
State: the mapping and the marks of frames already checked are derived. The mapping is renewed when the file has grown by 1 MiB,
frames after its end are copied: rows kept in caches then hold few mappings alive, and a process may have only so many.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import google_crc32c
import numpy as np
import pyarrow as pa

from storage_engine.errors import DamagedFrame, UnsupportedFormatVersion
from storage_engine.log.disk import Disk
from storage_engine.log.frame import ALIGNMENT, MAGIC, FrameHeader, FrameKind, parse_header, verify_payload

FILE_HEADER_BYTES: Final = 64
PLAIN_VERSION: Final = 1
STATE_VERSION: Final = 2
_FILE_MAGIC: Final = b"FLASHLOG"
_HEADER = struct.Struct("<8sIIQ40x")
_SUFFIX: Final = ".log"
_REMAP_BYTES: Final = 1024 * 1024


class FrameMoved(LookupError):
    """The file that held a frame was removed: its rows lie elsewhere, or have expired. Whoever reads plans again."""


class LogFile:
    """One file of the log, for reading. Appends go through CommitLog, which holds the descriptor.

    stop        the position after its last byte, once it is finished; None: it still grows
    is_removed  its bytes are needed by nobody, its name may be gone
    """

    def __init__(self, disk: Disk, path: Path, start: int, stop: int | None = None) -> None:
        self._disk = disk
        self.path = path
        self.start = start
        self.stop = stop
        self.is_removed = False
        self._data: pa.Buffer = pa.py_buffer(b"")
        self._checked = bytearray()  # one bit per 64 bytes of the file: the frame that begins there matched its checksum

    def map(self) -> pa.Buffer:
        """The file's bytes, mapped at their present size. Errors: DamagedFrame when the file is gone."""
        try:
            self._data = self._disk.map(self.path)
        except OSError as error:
            self._unreadable(error)
        return self._data

    def frame_at(self, position: int, length: int, *, is_whole: bool = True) -> tuple[FrameHeader, pa.Buffer]:
        """The frame of `length` bytes at a position, checked once against its checksums. Errors: DamagedFrame.

        is_whole  False: the payload is not read here, and its checksum not compared
        """
        offset = position - self.start
        if offset + length > self._data.size + _REMAP_BYTES or (offset + length > self._data.size and length > _REMAP_BYTES):
            self.map()
        data, data_at = self._data, 0
        if offset + length > data.size:
            try:
                data, data_at = self._disk.read(self.path, max(0, offset), length), offset
            except OSError as error:
                self._unreadable(error)
        at = offset - data_at
        header = parse_header(data, at, position, str(self.path), data_at)
        if is_whole and not self.is_checked(offset):
            self.check(data, header, data_at)
        return header, data.slice(at, header.length)

    def check(self, data: pa.Buffer, header: FrameHeader, data_at: int = 0) -> None:
        """Compare a frame's payload with its checksum and remember that it matched. Errors: DamagedFrame.

        `data` holds the frame and begins at byte `data_at` of the file.
        """
        offset = header.position - self.start
        verify_payload(data, offset - data_at, header, str(self.path), data_at)
        slot = offset // ALIGNMENT
        if slot >> 3 >= len(self._checked):
            self._checked.extend(bytes((slot >> 3) + 1024 - len(self._checked)))
        self._checked[slot >> 3] |= 1 << (slot & 7)

    def is_checked(self, offset: int) -> bool:
        slot = offset // ALIGNMENT
        return slot >> 3 < len(self._checked) and bool(self._checked[slot >> 3] >> (slot & 7) & 1)

    def _unreadable(self, error: OSError) -> NoReturn:
        if self.is_removed:
            raise FrameMoved(str(self.path)) from error
        raise DamagedFrame(
            f"the log file cannot be read: {error}",
            where=str(self.path),
            next_step="Restore it from a copy.",
            file=str(self.path),
            offset=0,
        ) from error


def file_name(start: int) -> str:
    """The name of the log file that begins at a position: 20 digits, so that names sort as positions do."""
    return f"{start:020d}{_SUFFIX}"


def start_of(name: str) -> int | None:
    """The start position a file name says; None for a name that is no log file's."""
    stem = name.removesuffix(_SUFFIX)
    return int(stem) if name.endswith(_SUFFIX) and len(stem) == 20 and stem.isdecimal() and stem.isascii() else None


def encode_file_header(start: int, version: int = PLAIN_VERSION) -> bytes:
    """The first 64 bytes of a log file: magic, CRC-32C of what follows it, version, position (docs/store.md)."""
    after_crc = _HEADER.pack(_FILE_MAGIC, 0, version, start)[12:]
    return _FILE_MAGIC + google_crc32c.value(after_crc).to_bytes(4, "little") + after_crc


def check_file_header(data: pa.Buffer, start: int, file: str) -> int:
    """The version. Errors: UnsupportedFormatVersion for another version; DamagedFrame for anything else that is not this header."""
    raw = data.slice(0, FILE_HEADER_BYTES).to_pybytes() if data.size >= FILE_HEADER_BYTES else b""
    problem, version = "the file is shorter than its header", 0
    if raw:
        magic, crc, version, named = _HEADER.unpack(raw)
        problem = ""
        if magic != _FILE_MAGIC or google_crc32c.value(raw[12:]) != crc:
            problem = "the file header does not match its checksum"
        elif version not in (PLAIN_VERSION, STATE_VERSION):
            raise UnsupportedFormatVersion(
                f"the log file has format version {version}; this program reads versions {PLAIN_VERSION} and {STATE_VERSION}",
                where=file,
                next_step="Open the directory with the program version that wrote it.",
            )
        elif named != start:
            problem = f"the file header says start {named}, its name says {start}"
    if problem:
        raise DamagedFrame(problem, where=f"{file}, byte 0", next_step="Restore the file from a copy.", file=file, offset=0)
    return version


def frames_after(data: pa.Buffer, start: int, offset: int) -> list[FrameHeader]:
    """Valid frame headers at or after `offset` of a file, found without following lengths; payloads are not checked."""
    first = offset + -offset % ALIGNMENT
    n_slots = (data.size - first) // ALIGNMENT
    if n_slots <= 0:
        return []
    words = np.frombuffer(data, np.uint32, count=n_slots * (ALIGNMENT // 4), offset=first)[:: ALIGNMENT // 4]
    candidates = np.flatnonzero(words == int.from_bytes(MAGIC, "little"))
    found = []
    for slot in candidates.tolist():
        at = first + slot * ALIGNMENT
        try:
            found.append(parse_header(data, at, start + at))
        except DamagedFrame:
            continue
    return found


def is_acknowledged(data: pa.Buffer, file: LogFile, position: int) -> bool:
    """True if a whole COMMIT or SEAL frame after `position` says that the byte at `position` was durable."""
    for header in frames_after(data, file.start, position - file.start):
        if header.kind != FrameKind.DATA and header.base_offset > position:
            with suppress(DamagedFrame):
                file.check(data, header)
                return True
    return False


def damaged(what: str, file: LogFile, offset: int) -> NoReturn:
    """Errors: DamagedFrame, always."""
    raise DamagedFrame(
        what,
        where=f"{file.path}, byte {offset}",
        next_step="Restore the file from a copy; run a check of the whole store to learn what else is damaged.",
        file=str(file.path),
        offset=offset,
    )
