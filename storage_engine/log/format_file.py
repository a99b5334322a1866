"""Format file: DIR/FORMAT names what a store directory is and in which version, under a checksum.

Owner: CommitLog.open claims an empty directory or checks an existing one. Written once, atomically; never changed in place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import google_crc32c

from storage_engine.errors import DamagedFrame, UnsupportedFormatVersion
from storage_engine.log.disk import Disk

FORMAT_NAME: Final = "flashlake-store"
FORMAT_VERSION: Final = 1
FILE_NAME: Final = "FORMAT"
_FILE_BYTES_MAX: Final = 256


def claim_directory(disk: Disk, directory: Path) -> None:
    """Make `directory` a store of this format, or check that it is one.

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
        disk.replace_file(path, [_content(FORMAT_NAME, FORMAT_VERSION)])
        return
    name, version = _parse(data, path)
    if (name, version) != (FORMAT_NAME, FORMAT_VERSION):
        raise UnsupportedFormatVersion(
            f"the directory has format {name!r} version {version}; this program reads {FORMAT_NAME!r} version {FORMAT_VERSION}",
            where=str(path),
            next_step="Open it with the program version that wrote it, or choose another directory.",
        )


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
