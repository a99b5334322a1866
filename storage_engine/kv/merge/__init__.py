"""merge: how a row becomes the next version of itself, and what the changelog says about it. Pure functions on Arrow.

plan_upsert, plan_delete decide; last_row and aggregation merge columns; bitmaps unite rbm32 values; changelog builds the rows.
"""

from storage_engine.kv.merge.bitmaps import checked_bitmaps
from storage_engine.kv.merge.changelog import ChangePlan
from storage_engine.kv.merge.plan import plan_delete, plan_upsert

__all__ = ["ChangePlan", "checked_bitmaps", "plan_delete", "plan_upsert"]
