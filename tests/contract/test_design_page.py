"""Contract: the calls of the design page work as they are printed there."""

from __future__ import annotations

import pyarrow as pa
import pytest

import storage_engine
from storage_engine.errors import StoreUnavailable, UserError


@pytest.mark.needs("consumers")
def test_the_printed_calls_of_a_primary_key_table(store):
    store.execute("""
        CREATE TABLE retail.order_ri (order_id BIGINT NOT NULL, line INT NOT NULL, item STRING, PRIMARY KEY (order_id, line) NOT ENFORCED)
        WITH ('bucket.key' = 'order_id', 'bucket.num' = '2')
    """)
    t = store.table("retail.order_ri")
    batch = pa.record_batch({"order_id": [1, 1, 2], "line": pa.array([1, 2, 1], pa.int32()), "item": ["a", "b", "c"]})
    keys = pa.table({"order_id": [1, 2], "line": pa.array([2, 1], pa.int32())})
    prefixes = pa.table({"order_id": [1]})

    t.upsert(batch, columns=None)
    assert t.lookup(keys, columns=None)["item"].to_pylist() == ["b", "c"]
    assert t.prefix_lookup(prefixes, columns=None, limit=None).num_rows == 2
    assert isinstance(t.scan(columns=None, where=None, start="earliest", stop="latest"), pa.RecordBatchReader)
    assert t.read(columns=None, where=None).num_rows == 3
    t.delete(keys)
    assert t.read()["item"].to_pylist() == ["a"]
    consumer = t.consumer("name")
    assert consumer.poll().num_rows == 5
    consumer.commit()


def test_the_printed_calls_of_a_log_table(store):
    store.execute("CREATE TABLE retail.order_log (order_id BIGINT, item STRING)")
    t = store.table("retail.order_log")

    t.append(pa.record_batch({"order_id": [1, 2], "item": ["a", "b"]}))

    assert t.scan(columns=["item"], where="order_id = 2").read_all().to_pydict() == {"item": ["b"]}


@pytest.mark.needs("journal")
def test_a_store_is_a_context_manager(own):
    with own.peer() as opened:
        assert opened.version() == own.store.version()


@pytest.mark.parametrize("url", ["http://localhost:1", "/a/path", "file://host/path", "flashlake://", "flashlake://h:x", ""])
def test_an_address_of_no_store_is_refused(url):
    with pytest.raises(UserError):
        storage_engine.connect(url)


def test_a_server_that_is_not_there_is_named(free_port):
    with pytest.raises(StoreUnavailable, match=str(free_port)):
        storage_engine.connect(f"flashlake://127.0.0.1:{free_port}", connect_s=0.3)
