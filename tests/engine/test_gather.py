"""The short ways of a lookup answer what the long ones do: rows gathered by address, one key in plain Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage_engine
from storage_engine.engine import gather
from storage_engine.engine.gather import GatherBudget, RowGather
from storage_engine.kv.key_index import nonzero
from storage_engine.kv.single import encode_key, hash_key
from storage_engine.log.frame_index import entries_of
from storage_engine.schema.keys import encode_keys, hash64

DDL = """CREATE TABLE g.t (k BIGINT NOT NULL, s STRING, i INT, d DOUBLE, b BYTES, small TINYINT, at TIMESTAMP(3),
  PRIMARY KEY (k) NOT ENFORCED) WITH ('bucket.num' = '3')"""


def rows(keys: np.ndarray, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    n = len(keys)

    def some(values: list[object]) -> list[object]:
        return [None if gone else value for value, gone in zip(values, rng.random(n) < 0.3 * (seed % 2), strict=True)]

    return pa.table(
        {
            "k": pa.array(keys, pa.int64()),
            "s": pa.array(some(["x" * int(m) + "é" for m in rng.integers(0, 40, n)]), pa.string()),
            "i": pa.array(some(rng.integers(-9, 9, n).tolist()), pa.int32()),
            "d": pa.array(some(rng.random(n).tolist()), pa.float64()),
            "b": pa.array(some([bytes(int(m)) for m in rng.integers(0, 9, n)]), pa.binary()),
            "small": pa.array(some(rng.integers(-9, 9, n).tolist()), pa.int8()),
            "at": pa.array(some(rng.integers(0, 1 << 40, n).tolist()), pa.timestamp("ms")),
        }
    )


@pytest.mark.parametrize("extra", ["", "compressed", "altered"])
def test_rows_of_many_frames_are_found_by_their_keys_with_nulls_and_text(tmp_path: Path, extra: str) -> None:
    with storage_engine.connect(f"file://{tmp_path}") as store:
        store.execute(DDL.replace("'3')", "'3', 'table.log.arrow.compression.type' = 'ZSTD')") if extra == "compressed" else DDL)
        table = store.table("g.t")
        expected: dict[int, dict[str, object]] = {}
        rng = np.random.default_rng(5)
        for seed in range(40):
            part = rows(rng.choice(500, 60, replace=False), seed)
            table.upsert(part)
            expected |= {row["k"]: row for row in part.to_pylist()}
            if extra == "altered" and seed == 20:
                store.execute("ALTER TABLE g.t ADD COLUMN later STRING")
                table = store.table("g.t")
            draw = rng.choice(520, 50, replace=False)
            found = table.lookup({"k": draw}, missing="null").to_pylist()
            for key, row in zip(draw.tolist(), found, strict=True):
                assert row.pop("_found") == (key in expected)
                row.pop("later", None)
                if key in expected:
                    assert row == expected[key]
            key = int(draw[0])
            one = table.lookup([key], columns=["s", "k"])
            assert one.to_pylist() == ([{"s": expected[key]["s"], "k": key}] if key in expected else [])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1), st.text(), st.binary()), min_size=1))
def test_one_key_in_python_is_encoded_and_hashed_as_in_columns(keys: list[tuple[int, int, str, bytes]]) -> None:
    kinds = [pa.int64(), pa.int32(), pa.string(), pa.binary()]
    encoded = encode_keys([pa.array(list(column), kind) for column, kind in zip(zip(*keys, strict=True), kinds, strict=True)])
    hashes = nonzero(hash64(encoded))
    for key, bytes_of_key, key_hash in zip(keys, encoded.to_pylist(), hashes.tolist(), strict=True):
        assert encode_key(key, kinds) == bytes_of_key
        assert hash_key(bytes_of_key) == key_hash


@pytest.mark.parametrize("is_far", [False, True])
@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=30), draws=st.lists(st.integers(0, 1 << 30), min_size=1, max_size=40))
def test_texts_are_copied_from_wherever_they_lie(texts: list[str], draws: list[int], is_far: bool) -> None:
    """Near: all frames lie within the reach of one view offset; far: each gigabyte of memory is a buffer of its own."""
    frames = [pa.array(texts), pa.array([text + "!" for text in texts])]
    starts = np.array([(frame.buffers()[1].address - gather._PAGE) // 4 for frame in frames])
    data = [frame.buffers()[2] for frame in frames]
    first = np.array([0 if part is None else part.address - gather._PAGE for part in data])
    frame_of, local = np.array(draws) % 2, np.array(draws) % len(texts)
    known = [(at, at + part.size) for at, part in zip(first.tolist(), data, strict=True) if part is not None]
    low, high = min(a for a, _ in known), max(b for _, b in known)
    reach = gather._Reach(low, low + (1 << 40) if is_far or high - low > gather._REACH else high, 1 << 20, has_short=True)

    columns = gather._gathered_texts(starts[frame_of][None, :], first[frame_of][None, :], local, reach)

    assert columns is not None
    ((offsets, held),) = columns
    found = pa.Array.from_buffers(pa.string(), len(local), [None, pa.py_buffer(offsets), pa.py_buffer(held)])
    assert found.to_pylist() == [frames[f][int(i)].as_py() for f, i in zip(frame_of, local, strict=True)]


def test_frames_that_stay_are_not_loaded_again_when_others_go() -> None:
    """Cleaning replaces frames of a bucket: the places of the others in its index move, what is known of them stays."""
    n = 40
    batches = {
        64 * i: pa.record_batch([pa.array([10 * i, 10 * i + 1]), pa.array([f"a text of frame {i}", None])], ["k", "s"]) for i in range(n)
    }
    loaded: list[int] = []

    def load(entry: np.void) -> tuple[pa.RecordBatch, int, None]:
        loaded.append(int(entry["position"]))
        return batches[int(entry["position"])], 0, None

    def entries(frames: list[int]) -> np.ndarray:
        return entries_of([(2 * i, 2 * i + 2, 64 * i, 1, 0, 64, 1, 2, 0) for i in frames])

    reader = RowGather(batches[0].schema, GatherBudget(1 << 30))

    def check(frames: list[int]) -> None:
        held = entries(frames)
        places = np.repeat(np.arange(len(frames)), 2)
        offsets = (held["base_offset"][places] + np.tile([1, 0], len(frames))).astype(np.int64)
        rows = reader.rows(held, places, offsets, load)
        assert rows is not None
        assert rows.to_pylist() == [row for i in frames for row in reversed(batches[64 * i].to_pylist())]
        for place, i in enumerate(frames):
            assert reader.values(held, 2 * i, load) == [10 * i, f"a text of frame {i}".encode()], place

    check(list(range(n)))
    assert sorted(loaded) == sorted(batches)
    loaded.clear()
    rest = [i for i in range(n) if i % 3]
    reader.keep(entries(rest)["position"].astype(np.int64))
    check(rest)
    assert not loaded
    reader.keep(entries(rest[:2])["position"].astype(np.int64))
    check(list(range(n)))
    assert sorted(loaded) == sorted(64 * i for i in range(n) if i not in rest[:2])
