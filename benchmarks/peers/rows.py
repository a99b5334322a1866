"""Rows of the comparisons: events of four columns (31 bytes as Arrow), and tables of 20 and 100 columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

EVENT = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("behaviour", pa.string()), ("ts", pa.int64())])
EVENT_DDL = "CREATE TABLE {name} (user_id BIGINT, item_id BIGINT, behaviour STRING, ts BIGINT) WITH ({options})"
KEYED = pa.schema([("k", pa.int64()), ("user_id", pa.int64()), ("behaviour", pa.string()), ("ts", pa.int64())])
KEYED_DDL = "CREATE TABLE {name} (k BIGINT NOT NULL, user_id BIGINT, behaviour STRING, ts BIGINT, PRIMARY KEY (k) NOT ENFORCED)"
_BEHAVIOURS = np.array(["pv", "buy", "cart", "fav"])


def events(n: int, seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 1_000_000, n), rng.integers(0, 100_000, n)
    columns = [users, items, _BEHAVIOURS[rng.integers(0, 4, n)], 1_700_000_000_000 + np.arange(n)]
    return pa.record_batch([pa.array(column) for column in columns], schema=EVENT)


def keyed(ids: np.ndarray, seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    n = len(ids)
    columns = [ids, rng.integers(0, 1_000_000, n), _BEHAVIOURS[rng.integers(0, 4, n)], 1_700_000_000_000 + np.arange(n)]
    return pa.record_batch([pa.array(column) for column in columns], schema=KEYED)


def twenty(n: int, seed: int) -> pa.RecordBatch:
    """10 BIGINT, 5 DOUBLE, 5 strings of 32 characters: 300 bytes a row."""
    rng = np.random.default_rng(seed)
    texts = np.array([f"{x:032x}" for x in rng.integers(0, 2**62, 4096)])
    columns = [pa.array(rng.integers(0, 2**40, n)) for _ in range(10)] + [pa.array(rng.random(n)) for _ in range(5)]
    columns += [pa.array(texts[rng.integers(0, 4096, n)]) for _ in range(5)]
    return pa.record_batch(columns, names=[f"i{x}" for x in range(10)] + [f"d{x}" for x in range(5)] + [f"s{x}" for x in range(5)])


def twenty_ddl(name: str) -> str:
    columns = [f"i{x} BIGINT" for x in range(10)] + [f"d{x} DOUBLE" for x in range(5)] + [f"s{x} STRING" for x in range(5)]
    return f"CREATE TABLE {name} ({', '.join(columns)}) WITH ('table.log.arrow.compression.type' = 'NONE')"
