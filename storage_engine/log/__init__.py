"""Log: the append-only files that are the truth of a store, their frames, and where each bucket's rows lie in them."""

from storage_engine.log.commit_log import AppendedCommit, CommitLog, LogPosition, RecoveredCommit
from storage_engine.log.disk import DirectoryLock, Disk
from storage_engine.log.frame import (
    CHANGE_TYPE_NAMES,
    EncodedFrame,
    FrameHeader,
    FrameKind,
    decode_batch,
    encode_data_frame,
    encode_message,
    frame_of_message,
)
from storage_engine.log.frame_index import BucketFrames, BucketId, FrameIndex, IndexedFrame
from storage_engine.log.pruning import MessagePruner, prune_message, pruner_of
from storage_engine.log.stored_frame import FrameLocation, StoredFrame

__all__ = [
    "CHANGE_TYPE_NAMES",
    "AppendedCommit",
    "BucketFrames",
    "BucketId",
    "CommitLog",
    "DirectoryLock",
    "Disk",
    "EncodedFrame",
    "FrameHeader",
    "FrameIndex",
    "FrameKind",
    "FrameLocation",
    "IndexedFrame",
    "LogPosition",
    "MessagePruner",
    "RecoveredCommit",
    "StoredFrame",
    "decode_batch",
    "encode_data_frame",
    "encode_message",
    "frame_of_message",
    "prune_message",
    "pruner_of",
]
