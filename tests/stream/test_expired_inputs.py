"""A job over a log that has expired: a new one takes what is there, a late one is told what it has missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage_engine import TableBucket
from storage_engine.errors import OffsetOutOfRange
from storage_engine.stream.operators.inputs import next_range
from tests.engine.cleaning import HOUR_MS, Clock, backend_of, opened

ONE = TableBucket("", 0)


def test_the_next_rows_of_a_job_are_found_though_versions_before_them_have_expired(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path / "s", clock) as store:
        store.execute("CREATE TABLE j.log (id BIGINT) WITH ('table.log.ttl' = '1h')")
        for n in range(40):
            clock.pass_ms(HOUR_MS // 20)
            store.table("j.log").append({"id": [n, n, n]})
        backend_of(store).clean()
        earliest = store.table("j.log").offsets("earliest")[ONE]
        assert 30 < earliest < 90

        start, read = {"j.log": {ONE: earliest}}, []
        while (work := next_range(store, ("j.log",), start, 0, 10)).n_rows:
            rows = store.table("j.log").scan(start=start["j.log"], stop=dict(work.stop["j.log"])).read_all()
            assert rows.num_rows == work.n_rows <= 10
            read += rows["id"].to_pylist()
            start = {"j.log": dict(work.stop["j.log"])}
        assert read == [n for n in range(earliest // 3, 40) for _ in range(3)]

        with pytest.raises(OffsetOutOfRange, match="of these rows have expired"):
            store.table("j.log").scan(start={ONE: 3}).read_all()
