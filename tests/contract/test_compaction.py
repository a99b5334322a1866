"""Contract: compact() gives back what nobody needs any more, changes no answer, and is refused by name where it is not."""

from __future__ import annotations

import pytest

from storage_engine.errors import UnknownTable
from tests.waiting import await_true


@pytest.mark.needs("compaction")
def test_rows_that_have_expired_give_their_space_back(store, db):
    store.execute(f"CREATE TABLE {db}.t (id BIGINT, v STRING) WITH ('bucket.num' = '2', 'table.log.ttl' = '1ms')")
    table = store.table(f"{db}.t")
    table.append({"id": list(range(5_000)), "v": [f"text {n}" for n in range(5_000)]})

    done = [table.compact()]
    await_true(lambda: done.append(table.compact()) or sum(info.n_rows_expired for info in done) == 5_000, "all rows expired")

    assert {info.table for info in done} == {table.name}
    assert sum(info.n_bytes_reclaimed for info in done) > 0
    assert table.offsets("earliest") == table.offsets("latest")
    assert table.scan(start="earliest").read_all().num_rows == 0


@pytest.mark.needs("compaction")
def test_what_may_still_be_asked_for_stays(store, db):
    log, keyed = f"{db}.log", f"{db}.pk"
    store.execute(f"CREATE TABLE {log} (id BIGINT); CREATE TABLE {keyed} (id BIGINT, n BIGINT, PRIMARY KEY (id) NOT ENFORCED)")
    store.table(log).append({"id": [1, 2, 3]})
    for n in range(5):
        store.table(keyed).upsert({"id": [1, 2], "n": [n, n]})

    infos = [store.table(name).compact() for name in (log, keyed)]

    assert [(info.n_rows_expired, info.n_rows_outlived) for info in infos] == [(0, 0), (0, 0)]
    assert store.table(log).scan().read_all()["id"].to_pylist() == [1, 2, 3]
    assert sorted(row["n"] for row in store.table(keyed).read().to_pylist()) == [4, 4]
    assert store.table(keyed).scan(start="earliest").read_all().num_rows == 2 + 4 * 4  # each update is -U and +U


@pytest.mark.needs("compaction")
def test_a_table_that_there_is_not_is_refused(store):
    with pytest.raises(UnknownTable):
        store.backend.compact("no.table")
