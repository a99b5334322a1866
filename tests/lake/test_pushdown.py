"""A union read reads only what its condition can meet, of the lake's files and of the store's frames, and answers the same."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pyarrow as pa
import pytest

import storage_engine
from query_engine import QueryEngine
from storage_engine.client.store import Store
from storage_engine.errors import SchemaMismatch, UserError
from storage_engine.lake import Limits, Tierer, lake_read, open_union, union_read

OPTIONS = "'table.datalake.enabled' = 'true', 'table.statistics.columns' = '*'"
DDL = f"""
CREATE TABLE a.log (x BIGINT, s STRING) WITH ({OPTIONS});
CREATE TABLE a.pk (k BIGINT, v BIGINT, s STRING, PRIMARY KEY (k) NOT ENFORCED) WITH ({OPTIONS});
CREATE TABLE a.wal (k BIGINT, v BIGINT, s STRING, PRIMARY KEY (k) NOT ENFORCED) WITH ({OPTIONS}, 'table.changelog.image' = 'wal')
"""


@pytest.fixture
def store(tmp_path: Path):
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as opened:
        opened.execute(DDL)
        yield opened


def scanned_files(duck, where: str) -> tuple[int, int]:
    """Files of the lake that a query over the view "u" reads, and how many there are."""
    plan = duck.execute(f"EXPLAIN ANALYZE SELECT * FROM u WHERE {where}").fetchall()[0][1]
    found = re.search(r"Scanning Files: (\d+)/(\d+)", plan)
    assert found, plan
    return int(found[1]), int(found[2])


@pytest.mark.parametrize(
    ("name", "where", "files", "frames", "rows"),
    [
        ("a.log", "x >= 410 AND x < 450", 1, 0, 40), ("a.log", "x >= 650 AND x < 710", 0, 2, 60), ("a.log", "s LIKE '2%'", 1, 0, 100),
        ("a.pk", "v >= 410 AND v < 450", 1, 1, 40), ("a.pk", "v >= 650 AND v < 710", 0, 3, 60), ("a.pk", "v = 5000", 0, 1, 1),
        ("a.pk", "v = 5", 1, 1, 0),  # the last frame holds 5 and 5000, so it is read for what lies between
    ],
)  # fmt: skip
def test_only_files_and_frames_that_can_match_are_read(store: Store, tmp_path: Path, duck, name, where, files, frames, rows) -> None:
    tierer = Tierer(store, tmp_path / "lake", Limits(compact_commits=100))
    for i in range(10):
        part = list(range(100 * i, 100 * i + 100))
        store.table("a.log").append({"x": part, "s": [f"{i}"] * 100})
        store.table("a.pk").upsert({"k": part, "v": part, "s": [f"{i}"] * 100})
        if i < 5:
            tierer.run_once(force=True)
    store.table("a.pk").upsert({"k": [5], "v": [5000], "s": ["8"]})
    before = store.backend.fetched.n_frames_read

    union = open_union(store, tmp_path / "lake", name, where=where)

    assert store.backend.fetched.n_frames_read - before == frames
    union.register(duck, "u")
    assert scanned_files(duck, where) == (files, 5)
    assert duck.execute(f"SELECT count(*) FROM u WHERE {where}").fetchall() == [(rows,)]


@pytest.mark.parametrize("seed", [1, 2])
def test_conditions_give_the_same_rows_at_every_stage_of_tiering(store: Store, tmp_path: Path, duck, seed: int) -> None:
    pick = random.Random(seed)
    tierer = Tierer(store, tmp_path / "lake", Limits(compact_commits=3))
    conditions = ["v = {n}", "v < {n}", "v BETWEEN {n} AND 12", "s LIKE '{d}%'", "v IS NULL", "NOT v = {n}", "k > {n} AND v > 5",
                  "s >= '{d}' OR v = {n}", "v NOT IN ({n}, 3) AND s < '5'"]  # fmt: skip
    for step in range(40):
        for name in ("a.pk", "a.wal"):
            keys = pick.sample(range(15), pick.randint(1, 3))
            if pick.random() < 0.25:
                store.table(name).delete({"k": keys})
            else:
                values = [pick.choice([None, *range(15)]) for _ in keys]
                store.table(name).upsert({"k": keys, "v": values, "s": [f"{pick.randrange(10)}" for _ in keys]})
        if pick.random() < 0.15:
            tierer.run_once(force=True)
        where = pick.choice(conditions).format(n=pick.randrange(15), d=pick.randrange(10))
        for name in ("a.pk", "a.wal"):
            expected = store.table(name).read(where=where).sort_by("k").to_pylist()
            found = union_read(duck, store, tmp_path / "lake", name, where=where).sort_by("k").to_pylist()
            assert found == expected, f"{name}, step {step}: {where}"
    assert store.backend.fetched.n_frames_skipped > 50


def test_queries_push_what_store_and_duckdb_mean_the_same_by(tmp_path: Path) -> None:
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as store:
        store.execute("CREATE TABLE a.log (x BIGINT, f DOUBLE, s STRING) WITH ('table.statistics.columns' = '*')")
        for i in range(10):
            floats = [float("nan"), float(i)]
            store.table("a.log").append(pa.table({"x": [i, i], "f": pa.array(floats, from_pandas=False), "s": [f"{i}", f"{i}"]}))
        engine = QueryEngine(store, tmp_path / "lake")

        def answer(where: str) -> tuple[int, int]:
            before = store.backend.fetched.n_frames_read
            n_rows = engine.query(f"SELECT l.x FROM a.log AS l WHERE {where}").num_rows
            return n_rows, store.backend.fetched.n_frames_read - before

        assert answer("x = 3") == (2, 1)
        assert answer("l.x > 7 AND ABS(l.x) < 9") == (2, 2)
        assert answer("s LIKE '4%' OR l.s = '5'") == (4, 2)
        assert answer("f > 8")[1] == 10  # DuckDB and Arrow order NaN differently: not pushed
        assert answer("f = 3 AND x BETWEEN 2 AND 4") == (1, 3)
        assert engine.query("SELECT COUNT(*) AS n FROM a.log$changelog WHERE x = 3").to_pylist() == [{"n": 2}]
        engine.close()


def test_the_lakes_side_alone_is_what_was_tiered(store: Store, tmp_path: Path, duck) -> None:
    store.table("a.pk").upsert({"k": [1, 2], "v": [10, 20], "s": ["a", "b"]})
    with pytest.raises(UserError, match="nothing in the lake yet"):
        lake_read(duck, store, tmp_path / "lake", "a.pk")
    Tierer(store, tmp_path / "lake").run_once(force=True)
    store.table("a.pk").upsert({"k": [1], "v": [11], "s": ["c"]})

    rows = lake_read(duck, store, tmp_path / "lake", "a.pk", ["k", "v"], where="s < 'b'")

    assert rows.to_pylist() == [{"k": 1, "v": 10}]
    with pytest.raises(SchemaMismatch, match="no column nope"):
        lake_read(duck, store, tmp_path / "lake", "a.pk", ["nope"])
