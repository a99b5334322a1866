"""Time travel: a table of a query is read as it was at a version or a moment; what was not there or is still to come is refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import storage_engine
from query_engine import QueryEngine
from query_engine.time_travel import version_at
from storage_engine.client.store import Store
from storage_engine.errors import UserError

N_VERSIONS = 12


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Rows of db.t and db.log after commit i: k = 0 .. i, the newest with v = i."""
    with storage_engine.connect(f"file://{tmp_path / 'store'}") as store:
        store.execute("CREATE TABLE db.t (k INT, v INT, PRIMARY KEY (k) NOT ENFORCED); CREATE TABLE db.log (k INT)")
        store.execute("CREATE VIEW db.sums AS SELECT SUM(v) AS s FROM db.t")
        for i in range(N_VERSIONS):
            store.table("db.t").upsert({"k": [i, 0], "v": [i, i]})
            store.table("db.log").append({"k": [i]})
            store.execute(f"CREATE TABLE db.other_{i} (k INT)")  # versions without rows between those with
        yield store


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Iterator[QueryEngine]:
    engine = QueryEngine(store, tmp_path / "lake")
    yield engine
    engine.close()


def test_a_version_answers_as_the_table_was_at_it(store: Store, engine: QueryEngine) -> None:
    commits = [commit.version for commit in store.commits(0) if "db.t" in commit.ranges]
    for i, version in enumerate(commits):
        found = engine.query(f"SELECT COUNT(*) AS n, MAX(v) AS v FROM db.t FOR VERSION AS OF {version}").to_pylist()
        assert found == [{"n": i + 1, "v": i}]
        assert engine.query(f"SELECT COUNT(*) AS n FROM db.log FOR VERSION AS OF {version}").to_pylist() == [{"n": i}]


def test_one_query_compares_two_versions_of_a_table(store: Store, engine: QueryEngine) -> None:
    first, *_, last = [commit.version for commit in store.commits(0) if "db.t" in commit.ranges]
    rows = engine.query(
        f"SELECT new.k, old.v AS was, new.v AS is_now FROM db.t FOR VERSION AS OF {last} AS new "
        f"JOIN db.t FOR VERSION AS OF {first} AS old ON new.k = old.k"
    ).to_pylist()
    assert rows == [{"k": 0, "was": 0, "is_now": N_VERSIONS - 1}]


def test_a_view_is_answered_from_its_tables_at_the_version(store: Store, engine: QueryEngine) -> None:
    version = next(commit.version for commit in store.commits(0) if "db.t" in commit.ranges)
    assert engine.query(f"SELECT s FROM db.sums FOR VERSION AS OF {version} AS x").to_pylist() == [{"s": 0}]


def test_a_moment_is_the_last_version_committed_until_it(store: Store, engine: QueryEngine) -> None:
    newest = store.version()
    commits = store.commits(0)
    for commit in commits:
        of_this_moment = max(other.version for other in commits if other.timestamp_ms <= commit.timestamp_ms)
        found = version_at(store, commit.timestamp_ms, newest)
        assert of_this_moment <= found, "what was committed at the moment belongs to it"
        assert not [other for other in commits if of_this_moment < other.version <= found], "what came later does not"
    assert version_at(store, commits[0].timestamp_ms - 1, newest) < commits[0].version
    moment = datetime.fromtimestamp(commits[-1].timestamp_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    assert engine.query(f"SELECT COUNT(*) AS n FROM db.t FOR SYSTEM_TIME AS OF TIMESTAMP '{moment}'").to_pylist() == [{"n": N_VERSIONS}]
    assert engine.query("SELECT COUNT(*) AS n FROM db.t FOR SYSTEM_TIME AS OF PROCTIME() AS x").to_pylist() == [{"n": N_VERSIONS}]
    early = engine.query("SELECT COUNT(*) AS n FROM db.t FOR SYSTEM_TIME AS OF CURRENT_TIMESTAMP - INTERVAL '1' DAY")
    assert early.to_pylist() == [{"n": 0}]


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("SYSTEM_TIME AS OF TIMESTAMP '2999-01-01 00:00:00'", "has not come yet"),
        ("SYSTEM_TIME AS OF k", "is not a constant"),
        ("SYSTEM_TIME AS OF 'soon'", "is no moment"),
        ("VERSION AS OF 99999", "the store's versions are 0 to"),
        ("VERSION AS OF 'x'", "the store's versions are 0 to"),
    ],
)
def test_what_is_no_version_is_refused(engine: QueryEngine, asked: str, what: str) -> None:
    with pytest.raises(UserError) as refused:
        engine.query(f"SELECT * FROM db.t FOR {asked}")
    assert what in str(refused.value)
