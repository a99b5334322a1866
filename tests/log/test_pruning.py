"""A pruned message decodes to the selected columns of the whole one; what is no message is damage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_engine.errors import DamagedFrame, UnsupportedByBackend
from storage_engine.log.frame import decode_batch, encode_message
from storage_engine.log.pruning import MessagePruner, prune_message
from tests.log.batches import COMPRESSIONS, batches


@settings(max_examples=200)
@given(batch=batches(), compression=st.sampled_from(COMPRESSIONS), data=st.data())
def test_decoding_a_pruned_message_equals_selecting_from_the_decoded_one(batch: pa.RecordBatch, compression: str, data: Any) -> None:
    columns = data.draw(st.lists(st.integers(0, batch.num_columns - 1), max_size=batch.num_columns, unique=True))
    message = encode_message(batch, compression, bytes_min=0)
    pruner = MessagePruner(batch.schema, columns)

    pruned = pruner.prune(message)

    wanted = decode_batch(message, batch.schema).select(columns)
    decoded = decode_batch(pruned, pruner.schema, untrusted=True)
    assert (decoded.num_rows, decoded.schema) == (batch.num_rows, wanted.schema)
    assert decoded.equals(wanted)
    assert pruner.decode(message).equals(wanted)
    assert b"".join(pruner.prune_to_buffers(message)) == pruned.to_pybytes() or columns == list(range(batch.num_columns))
    assert prune_message(message, batch.schema, columns).equals(pruned)


def test_a_hundred_columns_pruned_to_three_send_their_share_of_bytes() -> None:
    batch = pa.record_batch({f"c{i}": np.arange(1000) * i for i in range(100)})
    message = encode_message(batch, "none")

    pruned = prune_message(message, batch.schema, [98, 3, 50])

    assert pruned.size < message.size * 0.03 + 2000
    assert decode_batch(pruned, pa.schema([batch.schema.field(i) for i in (98, 3, 50)])).equals(batch.select([98, 3, 50]))


def test_all_columns_in_order_are_the_message_itself() -> None:
    batch = pa.record_batch({"a": [1], "b": [2]})
    message = encode_message(batch, "lz4", bytes_min=0)

    assert prune_message(message, batch.schema, [0, 1]) is message


def test_no_columns_keep_the_number_of_rows() -> None:
    batch = pa.record_batch({"a": [1, 2, 3]})
    for compression in COMPRESSIONS:
        pruned = prune_message(encode_message(batch, compression, bytes_min=0), batch.schema, [])
        assert decode_batch(pruned, pa.schema([])).num_rows == 3


@pytest.mark.parametrize("kind", [pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_types_whose_buffers_cannot_be_counted_are_refused_by_name(kind: pa.DataType) -> None:
    with pytest.raises(UnsupportedByBackend, match="column v"):
        MessagePruner(pa.schema([("a", pa.int64()), ("v", kind)]), [0])


def test_a_message_of_another_schema_is_damage() -> None:
    message = encode_message(pa.record_batch({"a": [1], "b": [2]}), "none")
    with pytest.raises(DamagedFrame, match="2 nodes and 4 buffers, not 2 and 5"):
        prune_message(message, pa.schema([("a", pa.int64()), ("b", pa.string())]), [0])


SCHEMA = pa.schema([("a", pa.int64()), ("s", pa.string()), ("l", pa.list_(pa.int32()))])
BATCH = pa.record_batch([[1, None, 3], ["x", "yy", None], [[1], None, [2, 3]]], schema=SCHEMA)


@given(data=st.binary(max_size=400), is_prefixed=st.booleans())
def test_arbitrary_bytes_are_damage(data: bytes, is_prefixed: bool) -> None:
    message = b"\xff\xff\xff\xff\x40\x00\x00\x00" + data if is_prefixed else data
    for method in (MessagePruner(SCHEMA, [1]).prune, MessagePruner(SCHEMA, [1]).decode):
        with pytest.raises(DamagedFrame):
            method(pa.py_buffer(message))


@settings(max_examples=500)
@given(
    compression=st.sampled_from(COMPRESSIONS), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3)
)
def test_a_message_with_flipped_bytes_is_damage_or_prunes_to_something(compression: str, flips: list[tuple[int, int]]) -> None:
    bad = bytearray(encode_message(BATCH, compression, bytes_min=0))
    for at, mask in flips:
        bad[at % len(bad)] ^= mask
    pruner = MessagePruner(SCHEMA, [2, 0])
    try:
        pruned = pruner.prune(pa.py_buffer(bytes(bad)))
        decoded = decode_batch(pruned, pruner.schema, untrusted=True)
    except DamagedFrame:
        return
    assert decoded.schema == pruner.schema


@pytest.mark.parametrize("number", [-1, 2**63 - 1, -(2**63), 2**40])
def test_a_message_with_an_absurd_number_anywhere_is_damage_or_prunes_to_something(number: int) -> None:
    good = encode_message(BATCH, "none").to_pybytes()
    pruner = MessagePruner(SCHEMA, [2, 0])
    n_damaged = 0
    for at in range(0, len(good) - 7, 8):
        bad = good[:at] + number.to_bytes(8, "little", signed=True) + good[at + 8 :]
        try:
            decode_batch(pruner.prune(pa.py_buffer(bad)), pruner.schema, untrusted=True)
        except DamagedFrame:
            n_damaged += 1
    assert n_damaged > 10


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_message_cut_anywhere_is_damage(compression: str) -> None:
    message = encode_message(BATCH, compression, bytes_min=0).to_pybytes()
    pruner = MessagePruner(SCHEMA, [1])
    for size in range(len(message) - 8):
        with pytest.raises(DamagedFrame):
            pruner.prune(pa.py_buffer(message[:size]))
