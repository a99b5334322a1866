"""A directory of store format version 1 is opened, upgraded and cleaned; its answers are those of the program that wrote it.

tests/vectors/store_v1 was written by the last program of version 1, with log files of 8 KiB; expected.json is what that program answered.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from storage_engine.client.store import Store
from storage_engine.engine.backup import restore
from storage_engine.engine.fsck import Finding, check_store
from tests.engine.cleaning import HOUR_MS, Clock, backend_of, log_files, opened, small_files
from tests.engine.test_key_snapshots import answers

VECTORS = Path(__file__).parents[1] / "vectors" / "store_v1"
EXPECTED = json.loads((VECTORS / "expected.json").read_text())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shutil.copytree(VECTORS / "store", tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now_ms = 1_760_000_100_000
    return clock


def as_read(store: Store) -> dict[str, object]:
    found = answers(store)
    found["log"] = sorted(store.table("k.log").scan(metadata=True).read_all().to_pylist(), key=str)
    found["version"] = store.version()
    return json.loads(json.dumps(found, default=str))


def expected(*names: str) -> dict[str, object]:
    return {name: EXPECTED[name] for name in EXPECTED if name != "middle" and (not names or name in names)}


def damages(directory: Path) -> list[Finding]:
    """What fsck calls damage; derived files of an earlier version are notes."""
    return [finding for finding in check_store(directory, keys=True).findings if finding.severity == "damage"]


@pytest.mark.parametrize("without", [(), ("CHECKPOINT",), ("CHECKPOINT", "index")])
def test_a_directory_of_version_1_answers_as_it_did_and_is_version_2_then(directory: Path, clock: Clock, without: tuple[str, ...]) -> None:
    for name in without:
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    for _ in range(2):
        with opened(directory, clock) as store:
            assert as_read(store) == expected()
            assert sorted(store.table("k.items").read(at=20).to_pylist(), key=str) == EXPECTED["middle"]
    assert (directory / "FORMAT").read_text().startswith("flashlake-store 2\n")
    assert damages(directory) == []


def test_fsck_verifies_version_1_and_leaves_it_as_it_is(directory: Path) -> None:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    assert damages(directory) == []

    (directory / "LOCK").unlink()
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_files_of_version_1_are_given_back_once_their_rows_have_moved(directory: Path, clock: Clock) -> None:
    old = {path.name for path in log_files(directory)}
    with small_files(8192), opened(directory, clock) as store:
        for name in ("items", "days", "log"):
            store.execute(f"ALTER TABLE k.{name} SET ('table.log.ttl' = '1h')")
        for _ in range(3):
            clock.pass_ms(2 * HOUR_MS)
            store.table("k.log").append({"a": [1], "b": ["x" * 5000], "c": [1]})
            backend_of(store).clean()
        store.backup(directory.parent / "b")
        read = as_read(store)
    assert {name: read[name] for name in ("rows", "days", "found", "prefixes", "counts")} == expected(
        "rows", "days", "found", "prefixes", "counts"
    )
    assert not old & {path.name for path in log_files(directory)}
    assert damages(directory) == []
    restore(directory.parent / "b", directory.parent / "r")
    with opened(directory.parent / "r", clock) as again:
        assert as_read(again) == read
