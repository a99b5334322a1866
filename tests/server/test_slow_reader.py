"""A reader of a whole table that pauses: its rows wait in a file, not in the server's memory, and are the same rows."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pytest

import storage_engine
from storage_engine.client.wire import Call, encode_call
from storage_engine.server.process import ServerProcess
from storage_engine.server.spool import Spool
from tests.waiting import await_true

N_ROWS = 200_000
WIDE = 200


def anonymous_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024


def rows(first: int, n: int) -> pa.Table:
    keys = range(first, first + n)
    return pa.table({"k": pa.array(keys, pa.int64()), "v": [str(key).rjust(WIDE, "x") for key in keys]})


def test_readers_that_pause_do_not_add_up_in_the_servers_memory(tmp_path):
    with ServerProcess(tmp_path / "s", sync="none") as server, storage_engine.connect(server.url) as store, ExitStack() as clients:
        store.execute("CREATE TABLE a.t (k BIGINT NOT NULL, v STRING, PRIMARY KEY (k) NOT ENFORCED) WITH ('bucket.num' = '1')")
        for first in range(0, N_ROWS, 100_000):
            store.table("a.t").upsert(rows(first, 100_000))
        arguments = {"table": "a.t", "columns": None, "partitions": None, "at_version": None, "limit": None}
        (message,) = encode_call(Call("read", arguments))
        grown, pausing = [], []
        for n_pausing in range(1, 5):
            client = clients.enter_context(fl.connect(server.url.replace("flashlake://", "grpc://")))
            stream = client.do_get(fl.Ticket(message.header))
            pausing.append((stream, [stream.read_chunk().data]))
            await_true(lambda n=n_pausing: server.log().count("went to a file") >= n, f"{n_pausing} in files", timeout_s=60, every_s=0.05)
            grown.append(anonymous_bytes(server.pid))
        store.table("a.t").upsert(rows(0, 1).set_column(1, "v", [["later"]]))  # it is not in them
        for stream, taken in pausing:
            while (chunk := next_of(stream)) is not None:
                taken.append(chunk)
            found = pa.Table.from_batches(taken).sort_by("k")
            assert found.equals(rows(0, N_ROWS).cast(found.schema))

    assert grown[-1] - grown[0] < 2 * N_ROWS * WIDE, (
        f"MiB with 1 to 4 pausing readers of {N_ROWS * WIDE >> 20}: {[size >> 20 for size in grown]}"
    )


def next_of(stream: fl.FlightStreamReader) -> pa.RecordBatch | None:
    try:
        return stream.read_chunk().data
    except StopIteration:
        return None


def answer(tmp_path: Path, **options: object) -> Spool:
    return Spool(rows(0, 200_000), str(tmp_path), bytes_min=0, **options)  # type: ignore[arg-type]


def test_a_spooled_answer_is_the_same_rows_in_the_same_order(tmp_path):
    spool = answer(tmp_path, pause_s=0.01)
    batches = spool.batches()
    taken = [next(batches)]
    await_true(lambda: spool.is_in_file, "the rest is in a file", timeout_s=30)
    taken += batches

    assert pa.Table.from_batches(taken).equals(rows(0, 200_000))
    assert list(tmp_path.iterdir()) == []  # the file never had a name


def test_an_answer_whose_file_cannot_be_written_stays_in_memory(tmp_path, caplog: pytest.LogCaptureFixture):
    spool = answer(tmp_path / "not there", pause_s=0.01)
    batches = spool.batches()
    taken = [next(batches)]
    await_true(lambda: "stay in memory" in caplog.text, "the refusal of the disk is logged", timeout_s=30)
    taken += batches

    assert pa.Table.from_batches(taken).equals(rows(0, 200_000))


def test_an_answer_given_up_frees_its_rows(tmp_path):
    before = pa.total_allocated_bytes()
    spool = answer(tmp_path, pause_s=30.0)
    batches = spool.batches()
    next(batches)
    batches.close()

    assert pa.total_allocated_bytes() - before < 8 << 20
