"""Auto-increment ids: each is given once, whatever fails; segments leave gaps, nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_engine.errors import SchemaMismatch
from storage_engine.kv import AutoIncrement, IdSegments
from storage_engine.schema.descriptor import Column, TableDescriptor


def table(kind: str = "BIGINT", **options: str) -> TableDescriptor:
    columns = (Column("k", "BIGINT", nullable=False), Column("id", kind))
    return TableDescriptor("t.t", columns, primary_key=("k",), bucket_keys=("k",), options={"auto-increment.fields": "id", **options})


def segmented(kind: str = "BIGINT", size: int = 10, last_id: int = 0) -> AutoIncrement:
    return AutoIncrement(table(kind, **{"table.auto-increment.cache-size": str(size)}), last_id)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 25), st.sampled_from(["commit", "fail", "kill"])), max_size=30))
def test_ids_that_were_committed_are_never_given_again(steps):
    counter = segmented()
    buckets = [IdSegments(counter) for _ in range(3)]
    given_out: list[int] = []
    recorded = 0
    for bucket, n, outcome in steps:
        taken = buckets[bucket].take(n).to_pylist()
        assert len(set(taken)) == n
        assert not set(taken) & set(given_out)
        assert max(taken) <= counter.last_id
        if outcome == "commit":
            given_out += taken
            recorded = counter.last_id
            counter.commit()
        elif outcome == "fail":
            counter.rollback()
            assert counter.last_id == recorded
        else:  # the process dies before the commit is in the log: the counter begins where the log says
            counter = segmented(last_id=recorded)
            buckets = [IdSegments(counter) for _ in range(3)]


def test_a_failed_commit_gives_its_ids_back():
    counter = segmented()
    ids = IdSegments(counter)
    ids.take(3)
    counter.commit()
    assert ids.take(12).to_pylist() == list(range(4, 16))
    counter.rollback()
    assert ids.take(2).to_pylist() == [4, 5]
    assert counter.last_id == 10


def test_the_last_segment_ends_with_the_columns_type():
    counter = segmented("INT", size=1000, last_id=2**31 - 6)
    ids = IdSegments(counter)
    assert ids.take(5).to_pylist() == list(range(2**31 - 5, 2**31))
    with pytest.raises(SchemaMismatch, match="the column ends at"):
        ids.take(1)
