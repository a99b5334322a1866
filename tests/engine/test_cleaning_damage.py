"""A gap left by cleaning is none to complain of; a missing file, a damaged header or frame is named."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from storage_engine.client.store import Store
from storage_engine.engine.fsck import check_store
from storage_engine.errors import DamagedFrame
from tests.engine.cleaning import (
    DDL,
    EAGER,
    HOUR_MS,
    Clock,
    append,
    backend_of,
    log_files,
    opened,
    overwrite,
    small_files,
)
from tests.engine.test_key_snapshots import crash


def make_store_with_gaps(directory: Path, clock: Clock) -> None:
    """A closed store whose log has lost files between two others."""
    never_joined = replace(EAGER, settled_ms=1 << 60)
    with small_files(20_000), opened(directory, clock, policy=never_joined) as store:
        store.execute(DDL)
        store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '-1')")
        for _ in range(2):
            for n in range(20):  # text that does not compress: files full of living rows
                store.table("c.log").append({"id": [n], "v": [os.urandom(2000).hex()]})
            overwrite(store, clock, 20)
        store.execute("DROP TABLE c.pk")
        store.table("c.log").append({"id": [0], "v": [os.urandom(2000).hex()]})
        backend_of(store).clean()


def test_a_missing_file_is_damage_and_a_gap_left_by_cleaning_is_not(clock: Clock, tmp_path: Path) -> None:
    make_store_with_gaps(tmp_path / "s", clock)
    files = log_files(tmp_path / "s")
    starts = [int(path.stem) for path in files]
    assert any(start + path.stat().st_size < after for path, start, after in zip(files, starts, starts[1:], strict=False))
    assert check_store(tmp_path / "s").findings == []

    for path in files[:-1]:
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(DamagedFrame, match=f"{path.name} is missing"):
            opened(tmp_path / "s", clock)
        assert any(path.name in finding.what for finding in check_store(tmp_path / "s").damages)
        path.write_bytes(data[:-64])
        with pytest.raises(DamagedFrame, match=f"{path.name} holds"):
            opened(tmp_path / "s", clock)
        path.write_bytes(data)
    (tmp_path / "s" / "CHECKPOINT").unlink()
    files[0].unlink()
    with pytest.raises(DamagedFrame, match=f"{files[0].name} is missing"):
        opened(tmp_path / "s", clock)


def test_a_bit_that_took_the_end_of_the_log_is_named_where_a_file_was_given_up_there(store: Store, clock: Clock, tmp_path: Path) -> None:
    overwrite(store, clock, 30)
    clock.pass_ms(2 * HOUR_MS)
    assert backend_of(store).clean().n_files_removed > 0
    directory = tmp_path / "copy"
    shutil.copytree(tmp_path / "s", directory)  # as a kill leaves it: the record that gives the files up is the last one
    (directory / "CHECKPOINT").unlink()
    path = log_files(directory)[-1]
    data = path.read_bytes()
    at = data.rindex(b'"removed"')
    path.write_bytes(data[:at] + b"R" + data[at + 1 :])

    for _ in range(2):  # the bytes are left as they are: the second start finds what the first one did
        with pytest.raises(DamagedFrame, match="is missing") as damage:
            opened(directory, clock)
        assert damage.value.file == str(path)
        assert at - 128 <= damage.value.offset <= at
    found = [(finding.file, finding.offset) for finding in check_store(directory).damages]
    assert (str(path), damage.value.offset) in found


def test_a_damaged_state_does_not_take_the_first_commit_of_its_file_with_it(clock: Clock, tmp_path: Path) -> None:
    with small_files(20_000):
        store = opened(tmp_path / "s", clock, sync="commit")
        store.execute(DDL)
        while len(log_files(tmp_path / "s")) == 1:
            append(store, clock, 1)
        crash(store)
    path = log_files(tmp_path / "s")[-1]
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])

    with pytest.raises(DamagedFrame, match="does not match its checksum") as damage:
        opened(tmp_path / "s", clock)

    assert (damage.value.file, damage.value.offset) == (str(path), 64)
    assert path.exists()


def test_a_header_that_allows_a_gap_before_its_file_is_named_when_it_is_damaged(clock: Clock, tmp_path: Path) -> None:
    make_store_with_gaps(tmp_path / "s", clock)
    files = log_files(tmp_path / "s")
    path = next(after for file, after in itertools.pairwise(files) if int(file.stem) + file.stat().st_size < int(after.stem))
    data = path.read_bytes()
    path.write_bytes(data[:30] + bytes([data[30] ^ 1]) + data[31:])

    for without in ("nothing", "CHECKPOINT"):
        (tmp_path / "s" / without).unlink(missing_ok=True)
        with pytest.raises(DamagedFrame, match="header does not match") as damage:
            opened(tmp_path / "s", clock)
        assert (damage.value.file, damage.value.offset) == (str(path), 0)
        assert (str(path), 0) in [(finding.file, finding.offset) for finding in check_store(tmp_path / "s").damages]


def test_damage_in_a_frame_that_would_be_moved_is_named_and_not_copied(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with small_files(20_000), opened(tmp_path / "s", clock) as store:
        store.execute(DDL + "CREATE TABLE c.other (id BIGINT, v STRING) WITH ('table.log.ttl' = '-1');")
        store.execute("ALTER TABLE c.log SET ('table.log.ttl' = '-1')")
        append(store, clock, 200)
        for _ in range(100):
            store.table("c.other").append({"id": [1], "v": ["z"]})
        overwrite(store, clock, 20)
        store.execute("DROP TABLE c.pk")
        path = log_files(tmp_path / "s")[0]
        data = path.read_bytes()
        at = data.index(b"a77") if b"a77" in data else data.index(b"a7")
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"A")
        clock.pass_ms(HOUR_MS)

        stats = backend_of(store).clean()

        assert stats.n_damaged_frames >= 1
        assert str(path) in caplog.text
        assert len(backend_of(store).core.buckets.index.bucket(3, 0, 0)) == 1  # the other table was re-packed
        with pytest.raises(DamagedFrame):
            store.table("c.log").scan().read_all()
    assert {finding.file for finding in check_store(tmp_path / "s").damages} == {str(path)}
