"""Stores written before columns had a history open as they are, from their checkpoint or from their log, and can then be altered."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

import storage_engine
from storage_engine.engine.fsck import check_store

VECTORS = Path(__file__).parent.parent / "vectors" / "store"


@pytest.mark.parametrize("source", ["checkpoint", "log"])
def test_a_store_whose_checkpoint_counts_columns_opens_reads_right_and_evolves(tmp_path: Path, source: str) -> None:
    with tarfile.open(VECTORS / "store-with-widths.tar.xz") as archive:
        archive.extractall(tmp_path / "s", filter="data")
    if source == "log":
        (tmp_path / "s" / "CHECKPOINT").unlink()
    assert [finding for finding in check_store(tmp_path / "s", keys=True).findings if finding.severity == "damage"] == []

    with storage_engine.connect((tmp_path / "s").as_uri()) as store:
        assert sorted(store.table("old.t").read().to_pylist(), key=str) == [
            {"p": "a", "k": 1, "n": 11, "note": "one"},
            {"p": "b", "k": 2, "n": 20, "note": None},
            {"p": "b", "k": 3, "n": 30, "note": "three"},
        ]
        assert sorted(store.table("old.log").scan().read_all().to_pydict().items()) == [("x", [1, 2, 3, 4]), ("y", [None] * 3 + ["four"])]
        store.execute("""
            ALTER TABLE old.t RENAME n TO m; ALTER TABLE old.t MODIFY m BIGINT; ALTER TABLE old.t DROP note;
            ALTER TABLE old.t ADD note INT; ALTER TABLE old.t SET ('bucket.num' = '5');
            ALTER TABLE old.log RENAME x TO z; ALTER TABLE old.log SET ('bucket.num' = '3')
        """)
        store.table("old.t").upsert({"p": ["b"], "k": [3], "m": [2**40], "note": [3]})
        altered = sorted(store.table("old.t").read().to_pylist(), key=str)
    assert check_store(tmp_path / "s", keys=True).findings == []

    with storage_engine.connect((tmp_path / "s").as_uri()) as store:
        assert sorted(store.table("old.t").read().to_pylist(), key=str) == altered
        assert altered[-1] == {"p": "b", "k": 3, "m": 2**40, "note": 3}
        assert sorted(store.table("old.log").scan(["z"]).read_all()["z"].to_pylist()) == [1, 2, 3, 4]
