"""merge: how a row becomes the next version of itself, and what the changelog says about it. Pure functions on Arrow.

plan_upsert, plan_delete decide; first_row and versioned choose between two rows, aggregation merges column by column with
product, listagg and bitmaps beside it and retraction taking rows back; changelog builds the rows.
"""

from storage_engine.kv.merge.bitmaps import checked_bitmaps
from storage_engine.kv.merge.changelog import ChangePlan
from storage_engine.kv.merge.plan import overwrites_blindly, plan_delete, plan_overwrite, plan_upsert
from storage_engine.kv.merge.retraction import retracted_columns

__all__ = ["ChangePlan", "checked_bitmaps", "overwrites_blindly", "plan_delete", "plan_overwrite", "plan_upsert", "retracted_columns"]
