"""Real Flink's answers to statements over event time: equal where Flink always gives one answer, and a fact of the log where it does not.

tests/vectors/flink_semantics/windows_run1..3: the same statements over the same nine events, run three times. In Flink a row is late when
it comes after a watermark that is sent every 200 ms, so runs differ; here each statement has one answer, and for each it is written here
which run it is equal to, or why it differs (docs/sql.md names them).
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from storage_engine import Store
from storage_engine.errors import StatementRefused
from storage_engine.stream import SqlSession, Worker
from tests.stream.comparing import differing_jobs

VECTORS = Path(__file__).parents[1] / "vectors" / "flink_semantics"
RUNS = [{item["name"]: item for item in json.loads((VECTORS / f"windows_run{n}.json").read_text())} for n in (1, 2, 3)]
EVENTS = [(1, "a", 1), (2, "a", 9), (3, "b", 12), (4, "a", 8), (5, "a", 10), (6, "b", 25), (7, "a", 19), (8, "a", 24), (9, "a", 40)]
BEGIN = dt.datetime(2020, 1, 1)  # noqa: DTZ001  # as a TIMESTAMP is: without a zone
END = ("", 100_000)
"""A row long after the others: what comes at the end of a bounded source in Flink. Its own window stays open."""

_KEYED = "PRIMARY KEY (id) NOT ENFORCED"
# statement -> (columns of the sink, the runs that are equal: 1 to 3)
EQUAL: dict[str, tuple[str, tuple[int, ...]]] = {
    "TUMBLE 10 s, wm delay 1 s": ("s TIMESTAMP(3), e TIMESTAMP(3), k STRING, v INT, n BIGINT", (1, 2, 3)),
    "TUMBLE with offset": ("s TIMESTAMP(3), e TIMESTAMP(3), k STRING, v INT, n BIGINT", (1, 2, 3)),
    "CUMULATE 5 s / 20 s": ("s TIMESTAMP(3), e TIMESTAMP(3), k STRING, v INT, n BIGINT", (1, 2, 3)),
    "SESSION 5 s PARTITION BY k": ("s TIMESTAMP(3), e TIMESTAMP(3), k STRING, v INT, n BIGINT", (2,)),
    "legacy TUMBLE()": ("s TIMESTAMP(3), k STRING, v INT", (2, 3)),
    "legacy SESSION()": ("s TIMESTAMP(3), e TIMESTAMP(3), k STRING, v INT", (1,)),
    "TVF rows (window_time)": ("id INT, s TIMESTAMP(3), e TIMESTAMP(3), t TIMESTAMP(3)", (1, 2, 3)),
    "OVER RANGE 10 s (event time)": (f"id INT, k STRING, v INT, {_KEYED}", (1,)),
    "OVER ROWS 1 PRECEDING (event time)": (f"id INT, k STRING, v INT, {_KEYED}", (3,)),
    "interval join": ("a INT, b INT", (2,)),
    "CURRENT_WATERMARK": ("id INT, w TIMESTAMP(3)", (1, 2, 3)),
    "dedup first row, rowtime": ("id INT, k STRING, ts TIMESTAMP(3), PRIMARY KEY (k) NOT ENFORCED", (1, 2, 3)),
    "dedup last row, rowtime": ("id INT, k STRING, ts TIMESTAMP(3), PRIMARY KEY (k) NOT ENFORCED", (1, 2, 3)),
    "dedup first row, proctime": ("id INT, k STRING, PRIMARY KEY (k) NOT ENFORCED", (1, 2, 3)),
    "dedup last row, proctime": ("id INT, k STRING, PRIMARY KEY (k) NOT ENFORCED", (1, 2, 3)),
}
MORE = {"TUMBLE with offset": [("2019-12-31 23:59:53", "2020-01-01 00:00:03", "a", 1, 1)]}
"""Rows that Flink lacks: it never sends the window of a row in time that ends at the offset (its timers count from no offset)."""
REFUSED = {
    "HOP size not multiple of slide": "whole number of steps",  # Flink refuses it as well
    "MATCH_RECOGNIZE": "MATCH_RECOGNIZE is not kept",
    "temporal sort ORDER BY rowtime": "a stream has no end",
}


def run(store: Store, select: str, columns: str, n_rows: int) -> list[tuple[Any, ...]]:
    """The rows of the result that come from the nine events, appended `n_rows` at a time, as Flink's answers print them."""
    session = SqlSession(store)
    session.execute(
        f"""USE db; CREATE TABLE ev (id INT, k STRING, v INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND);
        CREATE TABLE sink ({columns}); INSERT INTO sink {select}"""
    )
    worker = Worker(store)
    rows = [(number, k, number, BEGIN + dt.timedelta(seconds=second)) for number, k, second in EVENTS]
    rows.append((0, END[0], 0, BEGIN + dt.timedelta(seconds=END[1])))
    for start in range(0, len(rows), n_rows):
        piece = zip(*rows[start : start + n_rows], strict=True)
        store.table("db.ev").append({name: list(values) for name, values in zip(("id", "k", "v", "ts"), piece, strict=True)})
        worker.run_until_idle()
    assert differing_jobs(store) == []
    table = store.table("db.sink")
    found = table.read() if table.descriptor.has_primary_key else table.scan().read_all()
    printed = [tuple(_printed(value) for value in row.values()) for row in found.to_pylist()]
    return [row for row in printed if not (END[0] in row or 0 in row[:1])]


def _printed(value: Any) -> Any:
    return str(value) if isinstance(value, dt.datetime) else value


def content(rows: list[list[Any]]) -> Counter[tuple[Any, ...]]:
    """What is left of a changelog."""
    left: Counter[tuple[Any, ...]] = Counter()
    for kind, *row in rows:
        left[tuple(row)] += 1 if kind in ("+I", "+U") else -1
    return +left


def test_every_statement_of_the_vectors_is_answered_for() -> None:
    assert {*EQUAL, *REFUSED} == set(RUNS[0])


@pytest.mark.parametrize("n_rows", [1, 4, 100])
@pytest.mark.parametrize("name", list(EQUAL))
def test_the_answer_is_flinks(store: Store, name: str, n_rows: int) -> None:
    columns, runs = EQUAL[name]
    answers = [content(run["rows"]) for run in (runs_of[name] for runs_of in RUNS)]
    got = Counter(run(store, RUNS[0][name]["sql"], columns, n_rows))
    assert tuple(number for number, answer in enumerate(answers, 1) if answer + Counter(MORE.get(name, [])) == got) == runs


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_not_answered_is_refused_by_name(store: Store, name: str) -> None:
    with pytest.raises(StatementRefused, match=REFUSED[name]):
        run(store, RUNS[0][name]["sql"], "id INT, b INT, c INT, d INT, e INT", 100)
