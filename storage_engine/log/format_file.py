"""Format file: DIR/FORMAT names what a store directory is and in which version, under a checksum.

Owner: CommitLog.open claims an empty directory or checks an existing one. Replaced atomically, when the version grows.
Version 2 (log files begin with a state, frames move) reads all of version 1, so that a directory is upgraded by being opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import google_crc32c

from storage_engine.errors import DamagedFrame, UnsupportedFormatVersion
from storage_engine.log.disk import Disk

FORMAT_NAME: Final = "flashlake-store"
FORMAT_VERSION: Final = 2
READABLE_VERSIONS: Final = (1, 2)
FILE_NAME: Final = "FORMAT"
_FILE_BYTES_MAX: Final = 256


def claim_directory(disk: Disk, directory: Path) -> None:
    """Make `directory` a store of this format; one of an older version becomes one of this version.

    Errors: as read_format.
    """
    if read_format(disk, directory) != FORMAT_VERSION:
        disk.replace_file(directory / FILE_NAME, [_content(FORMAT_NAME, FORMAT_VERSION)])


def read_format(disk: Disk, directory: Path) -> int | None:
    """The version that FORMAT says; None where there is neither a FORMAT nor a log.

    Errors: UnsupportedFormatVersion for another name or version, or for a directory with log files and no FORMAT;
    DamagedFrame for a FORMAT that does not match its checksum.
    """
    path = directory / FILE_NAME
    data = disk.read_file(path)
    if data is None:
        if disk.exists(directory / "log") and disk.list(directory / "log"):
            raise UnsupportedFormatVersion(
                "the directory has log files but no FORMAT file",
                where=str(directory),
                next_step="Restore the FORMAT file from a copy of the directory.",
            )
        return None
    name, version = _parse(data, path)
    if name != FORMAT_NAME or version not in READABLE_VERSIONS:
        raise UnsupportedFormatVersion(
            f"the directory has format {name!r} version {version}; this program reads {FORMAT_NAME!r} up to version {FORMAT_VERSION}",
            where=str(path),
            next_step="Open it with the program version that wrote it, or choose another directory.",
        )
    return version


def _content(name: str, version: int) -> bytes:
    text = f"{name} {version}\n".encode()
    return text + f"crc32c {google_crc32c.value(text):08x}\n".encode()


def _parse(data: bytes, path: Path) -> tuple[str, int]:
    first, _, _ = data.partition(b"\n")
    name, _, version = first.decode("ascii", "replace").partition(" ")
    if len(data) > _FILE_BYTES_MAX or not version.isdecimal() or data != _content(name, int(version)):
        raise DamagedFrame(
            "the FORMAT file does not match its checksum",
            where=str(path),
            next_step="If the directory is a store, restore the file from a copy; otherwise choose another directory.",
            file=str(path),
            offset=0,
        )
    return name, int(version)
