"""Lake-only tables: what is written is what another engine reads, in one commit; wrong input changes nothing."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from storage_engine.errors import InvalidPartition, LakeChanged, SchemaMismatch, UserError
from storage_engine.lake import parquet_reader, write_lake_table
from storage_engine.lake.delta import LakeTable
from storage_engine.schema.descriptor import Column, TableDescriptor

SCHEMA = pa.schema([("week", pa.int64()), ("product", pa.string())])


def reader(weeks: list[int], product: str = "p") -> pa.RecordBatchReader:
    return pa.table({"week": weeks, "product": [f"{product}{w}" for w in weeks]}, schema=SCHEMA).to_reader()


def test_appends_and_a_replacement_of_some_partitions_read_back_from_duckdb(tmp_path, lake_rows):
    first = write_lake_table(tmp_path, "ods.promotions", reader([1, 2, 3]), "error", ["week"])
    second = write_lake_table(tmp_path, "ods.promotions", reader([3]), "append", ["week"])
    third = write_lake_table(tmp_path, "ods.promotions", reader([2, 3], "new"), "overwrite", ["week"], where="week IN (2, 3)")

    assert [(w.delta_version, w.n_rows) for w in (first, second, third)] == [(0, 3), (1, 1), (2, 2)]
    assert lake_rows(tmp_path / "ods" / "promotions") == [(1, "p1"), (2, "new2"), (3, "new3")]


def test_types_that_delta_does_not_have_are_written_as_their_nearest(tmp_path, lake_rows):
    at = dt.datetime.fromisoformat("2026-01-01T00:00:00.001")
    rows = pa.table(
        {
            "at": pa.array([at], pa.timestamp("ns")),
            "clock": pa.array([dt.time(0, 0, 1)], pa.time64("us")),
            "kind": pa.array(["a"]).dictionary_encode(),
            "text": pa.array(["b"], pa.large_string()),
        }
    )

    write_lake_table(tmp_path, "a.b", rows.to_reader(), comments={"kind": "what it is"})

    assert lake_rows(tmp_path / "a" / "b") == [(at, 1000, "a", "b")]
    assert DeltaTable(str(tmp_path / "a" / "b")).schema().fields[2].metadata["comment"] == "what it is"


def test_a_repeated_write_id_writes_nothing(tmp_path, lake_rows):
    write_lake_table(tmp_path, "a.b", reader([1]), "append", write_id=("backfill", 7))

    again = write_lake_table(tmp_path, "a.b", reader([1]), "append", write_id=("backfill", 7))

    assert again.is_duplicate
    assert lake_rows(tmp_path / "a" / "b", "count(*)") == [(1,)]


def test_a_row_outside_the_condition_is_refused_and_nothing_changes(tmp_path, lake_rows):
    write_lake_table(tmp_path, "a.b", reader([1, 2]), "error", ["week"])

    with pytest.raises(SchemaMismatch, match=r"a\.b"):
        write_lake_table(tmp_path, "a.b", reader([1, 9]), "overwrite", ["week"], where="week = 1")

    assert lake_rows(tmp_path / "a" / "b", "week") == [(1,), (2,)]


def test_rows_that_stop_half_way_leave_no_table(tmp_path):
    def broken() -> Iterator[pa.RecordBatch]:
        yield from reader([1, 2]).read_all().to_batches()
        raise LakeChanged("the source broke", where="test", next_step="none")

    with pytest.raises(Exception, match="the source broke"):
        write_lake_table(tmp_path, "a.b", pa.RecordBatchReader.from_batches(SCHEMA, broken()))

    assert not DeltaTable.is_deltatable(str(tmp_path / "a" / "b"))


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda root: write_lake_table(root, "a.b", reader([1])), UserError, "lake table a.b exists"),
        (lambda root: write_lake_table(root, "a.c", reader([1]), partition_by=["nope"]), SchemaMismatch, "no column nope"),
        (lambda root: write_lake_table(root, "a.c", pa.table({"x": [1.5]}).to_reader(), partition_by=["x"]), InvalidPartition, "column x"),
        (lambda root: write_lake_table(root, "a.b", pa.table({"week": ["text"]}).to_reader(), "append"), SchemaMismatch, "a.b"),
    ],
    ids=["exists", "partition column", "partition type", "other columns"],
)
def test_wrong_input_is_refused_by_name(tmp_path, call, error, named):
    write_lake_table(tmp_path, "a.b", reader([1]))

    with pytest.raises(error, match=named):
        call(tmp_path)


def test_a_tiered_table_is_not_written_from_outside(tmp_path):
    LakeTable.create(tmp_path / "a" / "b", TableDescriptor(name="a.b", columns=(Column("week", "BIGINT"),)), "lake-1", epoch=1)

    with pytest.raises(UserError, match="tiered from the store"):
        write_lake_table(tmp_path, "a.b", reader([1]), "append")


def test_a_parquet_file_streams_into_the_lake_with_the_columns_asked_for(tmp_path, lake_rows):
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"], "week": [1, 2]}), tmp_path / "source.parquet")

    write_lake_table(tmp_path, "a.b", parquet_reader(tmp_path / "source.parquet", ["week", "a"], batch_rows=1))

    assert lake_rows(tmp_path / "a" / "b") == [(1, 1), (2, 2)]


def test_writing_480_mb_of_rows_takes_less_than_half_of_that_as_memory(tmp_path):
    script = """
import resource, sys
import pyarrow as pa
from storage_engine.lake import parquet_reader, write_lake_table
batch = pa.record_batch({"week": [i % 50 for i in range(100_000)], "x": range(100_000), "y": ["same"] * 100_000})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = pa.RecordBatchReader.from_batches(batch.schema, (batch for _ in range(200)))
written = write_lake_table(sys.argv[1], "a.b", rows, "error", ["week"])
print(written.n_rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)

    n_rows, grown_mb = (int(word) for word in done.stdout.split())

    assert n_rows == 20_000_000
    assert grown_mb < 240
