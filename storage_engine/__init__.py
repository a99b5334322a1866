"""The streaming store: log tables and primary-key tables, SQL stream jobs over them, tiering into the lake.

`connect(url)` is the door: embedded (file://), served (flashlake://).
"""

from storage_engine.api import CommitInfo, CommitResult, Progress, WriteId, WriteOp
from storage_engine.client.store import Store
from storage_engine.client.table import Table
from storage_engine.connection import connect
from storage_engine.schema.descriptor import Column, Offsets, TableBucket, TableDescriptor

__all__ = [
    "Column",
    "CommitInfo",
    "CommitResult",
    "Offsets",
    "Progress",
    "Store",
    "Table",
    "TableBucket",
    "TableDescriptor",
    "WriteId",
    "WriteOp",
    "connect",
]
