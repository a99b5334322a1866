"""lake: tiering of the store's tables to Delta, exactly once, and the union read of lake and log.

Rooms: Tierer (tiering.py) keeps every table within its freshness, one Lane (lane.py) per table is the only writer of its
Delta table (delta.py, record.py); union.py reads lake and log as one; files.py holds lake-only tables.
"""

from storage_engine.lake.duck import connect_delta, load_delta
from storage_engine.lake.files import LakeWrite, parquet_reader, write_lake_table
from storage_engine.lake.freshness import TierLag, tier_lag
from storage_engine.lake.history import LakeHistory
from storage_engine.lake.lane import Round, table_path
from storage_engine.lake.planning import Limits
from storage_engine.lake.tiering import Tierer
from storage_engine.lake.union import LakeSnapshot, Union, find_snapshot, lake_read, open_union, union_read

__all__ = [
    "LakeHistory",
    "LakeSnapshot",
    "LakeWrite",
    "Limits",
    "Round",
    "TierLag",
    "Tierer",
    "Union",
    "connect_delta",
    "find_snapshot",
    "lake_read",
    "load_delta",
    "open_union",
    "parquet_reader",
    "table_path",
    "tier_lag",
    "union_read",
    "write_lake_table",
]
