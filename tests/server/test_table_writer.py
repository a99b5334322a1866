"""Table writer over a server: what is gathered, or compressed beside the caller, is what the caller gave, in its order."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import storage_engine
from storage_engine.client.encoding import RoutedAppend, RoutedRows, route_append
from storage_engine.client.encoding_queue import DEPTH, ROUTED_BYTES_MAX, EncodingQueue
from storage_engine.client.table import Table
from storage_engine.client.table_writer import GATHERED_ROWS
from storage_engine.errors import SchemaMismatch
from storage_engine.schema.descriptor import Column, TableDescriptor
from storage_engine.server import ServerProcess
from tests.waiting import await_true


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
    sizes = [GATHERED_ROWS, 3, 40, 2 * GATHERED_ROWS, 1, GATHERED_ROWS, GATHERED_ROWS, 7, ROUTED_BYTES_MAX // 8 + 1, GATHERED_ROWS] * 3
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


def test_a_writer_that_is_left_by_an_error_ends_its_thread_and_can_be_followed(store: storage_engine.Store) -> None:
    table = table_of(store, "left")
    batch = pa.table({"x": np.arange(GATHERED_ROWS)})

    def fail() -> None:
        with table.writer() as writer:
            for _ in range(10):
                writer.append(batch)
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    await_true(lambda: not any(thread.name.startswith("append-encoding") for thread in threading.enumerate()))
    with table.writer() as writer:
        writer.append(batch)

    found = numbers_of(table)
    assert len(found) % GATHERED_ROWS == 0
    assert np.array_equal(found[-GATHERED_ROWS:], np.arange(GATHERED_ROWS))


def test_a_queue_gives_appends_out_in_order_and_drops_one_that_cannot_be_encoded() -> None:
    descriptor = TableDescriptor(name="d.q", columns=(Column("x", "BIGINT"),))
    good = route_append(descriptor, pa.table({"x": [1, 2, 3]}))
    broken = RoutedAppend(descriptor, [RoutedRows("", 0, None)])  # type: ignore[list-item] - what no caller gives
    queue = EncodingQueue()

    assert not queue.is_first_ready()
    for routed in (broken, good)[:DEPTH]:
        queue.add(routed)
    with pytest.raises(AttributeError):
        queue.first()

    assert len(queue) == 1
    assert queue.first() == good.encoded()
    queue.drop_first()
    assert len(queue) == 0
    queue.close()
