"""Rows for benchmarks: deterministic, shaped like order events, about 145 bytes each."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

ORDER_DDL = """CREATE TABLE bench.orders (
  order_id BIGINT NOT NULL, user_id BIGINT, shop_id BIGINT, amount DOUBLE, quantity BIGINT, status INT,
  address STRING, note STRING, PRIMARY KEY (order_id) NOT ENFORCED)"""


def order_batch(ids: np.ndarray, seed: int) -> pa.RecordBatch:
    """Orders with the given ids (n,): five 8-byte columns, one 4-byte, two strings of 40 and 52 bytes."""
    rng = np.random.default_rng(seed)
    n = len(ids)
    pool_a = pa.array([f"{i:08d} Milk Tea Street, Building {i % 97:04d}, Unit"[:40].ljust(40, ".") for i in range(4096)])
    pool_b = pa.array([f"note {i:06d} leave it at the door, ring twice, thank you."[:52].ljust(52, ".") for i in range(4096)])
    return pa.RecordBatch.from_arrays(
        [
            pa.array(ids.astype(np.int64)),
            pa.array(rng.integers(0, 1 << 40, n)),
            pa.array(rng.integers(0, 10_000, n)),
            pa.array(rng.random(n) * 100),
            pa.array(rng.integers(1, 9, n)),
            pa.array(rng.integers(0, 5, n).astype(np.int32)),
            pool_a.take(pa.array(rng.integers(0, 4096, n))),
            pool_b.take(pa.array(rng.integers(0, 4096, n))),
        ],
        names=["order_id", "user_id", "shop_id", "amount", "quantity", "status", "address", "note"],
    )


def wide_ddl(n_columns: int) -> str:
    columns = ", ".join(f"c{i} BIGINT" if i % 4 else f"c{i} STRING" for i in range(n_columns))
    return f"CREATE TABLE bench.wide ({columns})"


def wide_batch(n_rows: int, n_columns: int, seed: int) -> pa.RecordBatch:
    """Telemetry-like rows: three of four columns are BIGINT, every fourth a string of 8 to 12 bytes."""
    rng = np.random.default_rng(seed)
    arrays: list[pa.Array] = []
    for i in range(n_columns):
        if i % 4:
            arrays.append(pa.array(rng.integers(0, 1 << 30, n_rows)))
        else:
            pool = pa.array([f"value-{k:05d}" for k in range(2000)])
            arrays.append(pool.take(pa.array(rng.integers(0, 2000, n_rows))))
    return pa.RecordBatch.from_arrays(arrays, names=[f"c{i}" for i in range(n_columns)])
