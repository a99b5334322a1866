"""Table writer over a server: what is gathered is what the caller gave, in its order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import storage_engine
from storage_engine.api import CommitRequest
from storage_engine.client.table import Table
from storage_engine.client.table_writer import GATHERED_ROWS, TableWriter
from storage_engine.client.wire import encode_commit
from storage_engine.errors import SchemaMismatch
from storage_engine.server import ServerProcess


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[storage_engine.Store]:
    with ServerProcess(Path(tmp_path_factory.mktemp("store")) / "s") as server, storage_engine.connect(server.url) as store:
        yield store


def table_of(store: storage_engine.Store, name: str) -> Table:
    store.execute(f"CREATE TABLE d.{name} (x BIGINT)")
    return store.table(f"d.{name}")


def numbers_of(table: Table) -> np.ndarray:
    return table.scan().read_all()["x"].to_numpy()


def test_large_and_small_appends_are_there_in_their_order(store: storage_engine.Store) -> None:
    table = table_of(store, "mixed")
    sizes = [GATHERED_ROWS, 3, 40, 2 * GATHERED_ROWS, 1, GATHERED_ROWS, GATHERED_ROWS, 7, 100 * GATHERED_ROWS, GATHERED_ROWS] * 3
    ends = np.cumsum([0, *sizes])

    with table.writer() as writer:
        for start, stop in itertools.pairwise(ends):
            writer.append(pa.table({"x": np.arange(start, stop)}))

    assert np.array_equal(numbers_of(table), np.arange(ends[-1]))


@pytest.mark.parametrize("n_rows", [10, GATHERED_ROWS])
def test_arrays_may_be_written_again_when_an_append_has_returned(store: storage_engine.Store, n_rows: int) -> None:
    table = table_of(store, f"reused{n_rows}")
    values = np.empty(n_rows, np.int64)

    with table.writer() as writer:
        for number in range(100):
            values[:] = number
            writer.append({"x": values})

    assert np.array_equal(numbers_of(table), np.repeat(np.arange(100), n_rows))


def test_a_writer_takes_what_an_append_takes(store: storage_engine.Store) -> None:
    store.execute("CREATE TABLE d.forms (x BIGINT, s STRING)")
    table = store.table("d.forms")
    words = pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c"]).dictionary_encode()])
    forms = [
        {"x": [1, 2, 3], "s": words},
        {"x": pa.chunked_array([[4], [5]]), "s": pa.array(["d", None], pa.string_view())},
        [{"x": 6, "s": "e"}],
        {"x": [], "s": []},
        pa.record_batch({"x": [7], "s": ["f"]}),
        pa.table({"x": [8], "s": ["g"]}).to_reader(),
    ]

    with table.writer() as writer:
        for form in forms:
            writer.append(form)

    expected = [*zip(range(1, 9), ["a", "b", "c", "d", None, "e", "f", "g"], strict=True)]
    assert [(row["x"], row["s"]) for row in table.scan().read_all().to_pylist()] == expected


@pytest.mark.parametrize("n_rows", [10, GATHERED_ROWS])
def test_rows_that_do_not_fit_are_told_once_and_all_others_are_written(store: storage_engine.Store, n_rows: int) -> None:
    table = table_of(store, f"refused{n_rows}")
    told = 0

    with table.writer() as writer:
        for number in range(60):
            name = "wrong" if number % 20 == 7 else "x"
            rows = pa.table({name: np.full(n_rows, number)})
            try:
                writer.append(rows)
            except SchemaMismatch:
                told += 1
                if name == "x":  # of an earlier one: this one was not taken
                    writer.append(rows)

    assert told == 3
    assert np.array_equal(numbers_of(table), np.repeat([n for n in range(60) if n % 20 != 7], n_rows))


@pytest.mark.parametrize("kind", ["append", "upsert", "delete"])
def test_what_waits_for_its_answer_is_no_array_of_the_caller(store: storage_engine.Store, kind: str) -> None:
    """A write without an answer is sent again when its connection breaks: it must be what it was."""
    key = "" if kind == "append" else ", PRIMARY KEY (x) NOT ENFORCED"
    store.execute(f"CREATE TABLE d.waits_{kind} (x BIGINT{key})")
    stream = _Kept()
    values = np.arange(5)

    getattr(TableWriter(store.table(f"d.waits_{kind}"), stream), kind)({"x": values})
    (request,) = stream.requests
    before = contents(request)
    values[:] = 9

    assert contents(request) == before


def contents(request: CommitRequest) -> list[object]:
    _, tables, messages = encode_commit(request)
    return [*(table.to_pydict() for table in tables), *(message.to_pybytes() for message in messages)]


class _Kept:
    """A stream that keeps what it is given, as one does whose answers do not come."""

    def __init__(self) -> None:
        self.requests: list[CommitRequest] = []

    def n_waiting(self) -> int:
        return 0

    def send(self, request: CommitRequest) -> None:
        self.requests.append(request)

    def finish(self) -> None: ...

    def close(self) -> None: ...
