"""lake: tiering of the store's tables to Delta, exactly once, and the union read of lake and log.

Rooms: Tierer (tiering.py) keeps every table within its freshness, one Lane (lane.py) per table is the only writer of its
Delta table (delta.py, record.py); union.py reads lake and log as one; files.py holds lake-only tables.
"""

from storage_engine.lake.duck import connect_delta, load_delta
from storage_engine.lake.freshness import TierLag, tier_lag
from storage_engine.lake.lane import Round, table_path
from storage_engine.lake.planning import Limits
from storage_engine.lake.tiering import Tierer

__all__ = ["Limits", "Round", "TierLag", "Tierer", "connect_delta", "load_delta", "table_path", "tier_lag"]
