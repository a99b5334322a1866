"""Wire: what a store says over the network, as values and bytes. Pure: no socket, thread or clock.

One call is a Call (method, JSON arguments, Arrow tables); its answer is a Reply (JSON result, Arrow tables) or a FlashlakeError.
Both ends share these functions, so `decode_x(encode_x(value)) == value` is the whole protocol.
"""

from storage_engine.client.wire.envelope import (
    CELL_SCHEMA,
    CHUNK_BYTES_MAX,
    PROTOCOL_VERSION,
    REQUEST_BYTES_MAX,
    Assembler,
    Call,
    Message,
    Reply,
    decode_call,
    decode_chunk,
    decode_reply,
    encode_call,
    encode_chunk,
    encode_error_reply,
    encode_reply,
)
from storage_engine.client.wire.errors import decode_error, encode_error
from storage_engine.client.wire.frames import (
    FRAME_SCHEMA,
    decode_frames,
    decode_group,
    encode_frames,
    encode_group,
    frames_of_reply,
    reply_of_frames,
)
from storage_engine.client.wire.values import (
    decode_commit,
    decode_commit_info,
    decode_offsets,
    decode_progress,
    decode_ranges,
    encode_commit,
    encode_commit_info,
    encode_offsets,
    encode_progress,
    encode_ranges,
)

__all__ = [
    "CELL_SCHEMA",
    "CHUNK_BYTES_MAX",
    "FRAME_SCHEMA",
    "PROTOCOL_VERSION",
    "REQUEST_BYTES_MAX",
    "Assembler",
    "Call",
    "Message",
    "Reply",
    "decode_call",
    "decode_chunk",
    "decode_commit",
    "decode_commit_info",
    "decode_error",
    "decode_frames",
    "decode_group",
    "decode_offsets",
    "decode_progress",
    "decode_ranges",
    "decode_reply",
    "encode_call",
    "encode_chunk",
    "encode_commit",
    "encode_commit_info",
    "encode_error",
    "encode_error_reply",
    "encode_frames",
    "encode_group",
    "encode_offsets",
    "encode_progress",
    "encode_ranges",
    "encode_reply",
    "frames_of_reply",
    "reply_of_frames",
]
