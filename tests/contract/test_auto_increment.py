"""Contract: an auto-increment table gives each new key one id, however many ask for it at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from storage_engine.errors import SchemaMismatch

pytestmark = pytest.mark.needs("auto_increment")

MAPPING = """
    CREATE TABLE {db}.mapping (household STRING NOT NULL, id BIGINT, PRIMARY KEY (household) NOT ENFORCED)
    WITH ('auto-increment.fields' = 'id', 'bucket.num' = '2')
"""


SEGMENTS = MAPPING.replace("'2')", "'2', 'table.auto-increment.cache-size' = '50')")


@pytest.fixture
def mapping(store, db):
    store.execute(MAPPING.format(db=db))
    return store.table(f"{db}.mapping")


@pytest.fixture
def segmented(store, db):
    store.execute(SEGMENTS.format(db=db))
    return store.table(f"{db}.mapping")


def ids(table):
    return dict(zip(*table.read(columns=["household", "id"]).to_pydict().values(), strict=True))


def test_new_rows_get_unique_ids_from_one_on(mapping):
    mapping.upsert({"household": ["a", "b"]}, columns=["household"])
    mapping.upsert({"household": ["c", "a"]}, columns=["household"])

    assert sorted(ids(mapping)) == ["a", "b", "c"]
    assert len(set(ids(mapping).values())) == 3
    assert min(ids(mapping).values()) == 1


def test_a_written_id_is_refused(mapping):
    with pytest.raises(SchemaMismatch, match="id"):
        mapping.upsert({"household": ["a"], "id": [7]})
    assert mapping.count() == 0


def test_a_partial_delete_never_takes_the_id_of_a_row(store, db):
    store.execute(
        f"CREATE TABLE {db}.noted (k STRING, id INT, note STRING, PRIMARY KEY (k) NOT ENFORCED) WITH ('auto-increment.fields' = 'id')"
    )
    noted = store.table(f"{db}.noted")
    noted.upsert([{"k": "a", "note": "x"}], ["k", "note"])

    for key in ("a", "unknown"):
        with pytest.raises(SchemaMismatch, match="filled by the store"):
            noted.delete({"k": [key]}, ["id"])

    assert noted.read().to_pylist() == [{"k": "a", "id": 1, "note": "x"}]


@pytest.mark.needs("insert_if_not_exists")
def test_a_lookup_that_inserts_returns_the_same_id_ever_after(mapping):
    first = mapping.lookup({"household": ["x", "y", "x"]}, insert_if_not_exists=True)["id"].to_pylist()

    assert first[0] == first[2] != first[1]
    assert mapping.lookup({"household": ["x", "y"]}, insert_if_not_exists=True)["id"].to_pylist() == first[:2]
    assert mapping.lookup({"household": ["x", "y", "z"]})["id"].to_pylist() == first[:2]
    assert mapping.count() == 2


@pytest.mark.needs("insert_if_not_exists")
@pytest.mark.parametrize("ids_come", ["mapping", "segmented"])
def test_writers_that_ask_for_the_same_new_keys_at_once_get_the_same_ids(request, shared, ids_come, db):
    mapping = request.getfixturevalue(ids_come)
    households = [f"h{n}" for n in range(200)]

    def ask(turn):
        table = shared.peer().table(f"{db}.mapping")
        # each writer begins elsewhere, so that they meet in the middle of each other's keys
        mine = households[turn * 25 :] + households[: turn * 25]
        answers = {}
        for first in range(0, len(mine), 20):
            keys = mine[first : first + 20]
            answers.update(zip(keys, table.lookup({"household": keys}, insert_if_not_exists=True)["id"].to_pylist(), strict=True))
        return answers

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))

    assert all(answer == answers[0] for answer in answers)
    assert len(set(answers[0].values())) == 200
    assert ids(mapping) == answers[0]


def test_ids_in_segments_are_unique_and_each_bucket_fills_its_own_segments(segmented):
    for n in range(0, 300, 30):
        segmented.upsert({"household": [f"h{i}" for i in range(n, n + 30)]}, columns=["household"])

    found = sorted(ids(segmented).values())
    assert len(set(found)) == len(found) == 300
    assert found[-1] <= 2 * 50 + 300, "two buckets, each with one segment begun"


@pytest.mark.needs("insert_if_not_exists")
@pytest.mark.parametrize("ddl", [MAPPING, SEGMENTS], ids=["gapless", "segments"])
def test_ids_are_not_given_twice_after_a_restart(own, ddl):
    own.store.execute(ddl.format(db="a"))
    before = own.store.table("a.mapping").lookup({"household": ["a", "b", "c"]}, insert_if_not_exists=True)["id"].to_pylist()

    own.restart()
    after = own.store.table("a.mapping").lookup({"household": ["a", "d"]}, insert_if_not_exists=True)["id"].to_pylist()

    assert after[0] == before[0]
    assert after[1] not in before
