"""Skipping: what the store reads of skipped frames is counted, and their rows are not even touched."""

from __future__ import annotations

import pytest

import storage_engine
from storage_engine.errors import DamagedFrame


def test_skipped_frames_are_not_read_and_are_counted_in_bytes(tmp_path):
    with storage_engine.connect(f"file://{tmp_path}/s") as store:
        store.execute("CREATE TABLE a.t (x BIGINT, pad STRING) WITH ('table.statistics.columns' = 'x', 'bucket.num' = '1')")
        table = store.table("a.t")
        for i in range(20):
            table.append({"x": list(range(1000 * i, 1000 * i + 1000)), "pad": [f"{n:064d}" for n in range(1000)]})
        before = store.backend.fetched.n_bytes_read

        assert table.scan(["x"], "x >= 19500").read_all().num_rows == 500

        counts = store.backend.fetched
        assert (counts.n_frames_read, counts.n_frames_skipped) == (1, 19)
        assert counts.n_bytes_skipped > 18 * (counts.n_bytes_read - before)


def test_a_frame_that_is_skipped_needs_no_whole_payload_and_one_that_is_read_does(tmp_path):
    with storage_engine.connect(f"file://{tmp_path}/s") as store:
        store.execute("CREATE TABLE a.t (x BIGINT) WITH ('table.statistics.columns' = '*')")
        store.table("a.t").append({"x": list(range(5000))})
    (log,) = (tmp_path / "s" / "log").iterdir()
    data = bytearray(log.read_bytes())
    at = data.index(b"FLF1", 64)
    while data[at + 24] != 1:  # the data frame
        at = data.index(b"FLF1", at + 64)
    last = at + int.from_bytes(data[at + 12 : at + 16], "little") - 80
    data[last] ^= 1
    log.write_bytes(data)

    with storage_engine.connect(f"file://{tmp_path}/s") as store:
        table = store.table("a.t")
        assert table.scan(where="x < 0").read_all().num_rows == 0
        with pytest.raises(DamagedFrame, match="does not match its checksum"):
            table.scan(where="x > 4990").read_all()
