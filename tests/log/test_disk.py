"""The real disk: writes of many buffers, whole-file replacement, and the lock that keeps a second process out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage_engine.errors import StoreLocked
from storage_engine.log.disk import Disk

HOLDER = """
import sys
from pathlib import Path
from storage_engine.log.disk import Disk
lock = Disk().lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_with_the_pid_of_the_first_until_that_one_dies(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"

        with pytest.raises(StoreLocked, match=f"in use by process {holder.pid}") as refusal:
            Disk().lock(path)
        assert refusal.value.pid == holder.pid
        assert refusal.value.where == str(tmp_path)

        holder.kill()
        holder.wait(30)
    Disk().lock(path).release()


def test_the_same_process_is_refused_too_until_it_releases(tmp_path: Path) -> None:
    first = Disk().lock(tmp_path / "LOCK")
    with pytest.raises(StoreLocked):
        Disk().lock(tmp_path / "LOCK")
    first.release()
    first.release()

    Disk().lock(tmp_path / "LOCK").release()


def test_a_write_takes_more_buffers_than_one_system_call_does(tmp_path: Path) -> None:
    disk = Disk()
    fd = disk.open_file(tmp_path / "file")
    buffers = [b"", *(bytes([i % 251]) * (i % 7) for i in range(5000)), np.arange(10), np.zeros(0, np.uint8), pa.py_buffer(b"end")]

    assert disk.write(fd, buffers, 3) == sum(memoryview(buffer).nbytes for buffer in buffers)

    disk.close(fd)
    assert (tmp_path / "file").read_bytes() == bytes(3) + b"".join(bytes(buffer) for buffer in buffers)


def test_a_replaced_file_is_the_new_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    disk = Disk()
    disk.replace_file(tmp_path / "file", [b"a long first content"])
    disk.replace_file(tmp_path / "file", [b"sec", b"ond"])

    assert disk.read_file(tmp_path / "file") == b"second"
    assert disk.list(tmp_path) == ["file"]
    assert disk.read_file(tmp_path / "none") is None


def test_a_mapping_outlives_the_file_and_sees_the_size_at_its_making(tmp_path: Path) -> None:
    disk = Disk()
    disk.replace_file(tmp_path / "file", [b"content"])
    mapped = disk.map(tmp_path / "file")
    disk.unlink(tmp_path / "file")

    assert mapped.to_pybytes() == b"content"
    disk.replace_file(tmp_path / "empty", [])
    assert disk.map(tmp_path / "empty").size == 0
