"""Rows of a prefix lookup come by prefix, then by the bytes of their key, whatever the key's types and the order they were written in."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import storage_engine
from storage_engine.kv.prefix_order import prefix_order
from storage_engine.schema.keys import encode_keys

INTEGERS = st.integers(0, 300) | st.integers(0, 2**62) | st.integers(-(2**63), -1)


def _by_bytes(position: list[int], rest: list[pa.Array]) -> list[tuple[int, bytes]]:
    return list(zip(position, encode_keys(rest).to_pylist(), strict=True))


@given(st.lists(st.tuples(st.integers(0, 5), INTEGERS), min_size=1, max_size=60), st.booleans(), st.booleans())
def test_rows_are_ordered_by_prefix_and_key_bytes(rows: list[tuple[int, int]], is_small: bool, is_sorted: bool) -> None:
    if is_small:
        rows = [(at, value % 2**20) for at, value in rows]
    columns = [[pa.array([value for _, value in rows])], [pa.array([str(value) for _, value in rows])]]
    columns.append([columns[0][0], columns[1][0]])
    for rest in columns:
        keys = _by_bytes([at for at, _ in rows], rest)
        places = sorted(range(len(rows)), key=keys.__getitem__) if is_sorted else list(range(len(rows)))
        position = np.array([rows[i][0] for i in places])
        order = prefix_order(position, [column.take(pa.array(places)) for column in rest])
        answered = [keys[i] for i in places] if order is None else [keys[places[i]] for i in order.tolist()]
        assert answered == sorted(keys)


@pytest.mark.parametrize("n", [10, 2000])
def test_integers_that_come_in_order_are_left_as_they_are(n: int) -> None:
    position, values = np.repeat(np.arange(n), 3), pa.array([1, 100, 127] * n)
    assert prefix_order(position, [values]) is None
    assert prefix_order(position, [pa.array([256, 129, 130] * n)]) is None  # of bytes 80 02, 81 01, 82 01: not the order of numbers
    assert prefix_order(position[::-1].copy(), [values]) is not None


@pytest.mark.parametrize("note", ["", "pv", "a note that is longer than twelve bytes"])
def test_a_prefix_lookup_answers_rows_written_in_any_order(tmp_path: Path, note: str) -> None:
    items = [300, 5, 2**60, -1, 128, 0, 127]
    with storage_engine.connect(f"file://{tmp_path}") as store:
        store.execute("CREATE DATABASE d")
        store.execute(
            "CREATE TABLE d.p (u BIGINT NOT NULL, item BIGINT NOT NULL, note STRING, PRIMARY KEY (u, item) NOT ENFORCED) "
            "WITH ('bucket.key' = 'u')"
        )
        table = store.table("d.p")
        for item in items:
            table.upsert([{"u": u, "item": item, "note": note + str(item % 7) * (u % 3)} for u in (7, 200, -3)])
        table.delete([{"u": 200, "item": 5}])
        table.upsert([{"u": 200, "item": 5, "note": None}])  # entered under its prefix for the second time
        for asked in ([200, 7], [7, 200], [200, 7, 8, 200, -3]):
            for limit in (None, 3):
                expected = []
                for u in asked:
                    held = [] if u == 8 else [item for item in items]
                    held.sort(key=lambda item: encode_keys([pa.array([item])])[0].as_py())
                    expected += [
                        {"u": u, "item": item, "note": None if (u, item) == (200, 5) else note + str(item % 7) * (u % 3)}
                        for item in held[:limit]
                    ]
                rows = table.prefix_lookup({"u": asked}, limit=limit)
                assert rows.to_pylist() == expected
                assert table.prefix_lookup({"u": asked}, ["note", "u"], limit).to_pylist() == [
                    {"note": row["note"], "u": row["u"]} for row in expected
                ]
