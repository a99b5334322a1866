"""What the business has. One .sql file per table; a .py file where SQL cannot say it: here, tables that only the lake has."""

from assets.dws.promotion_line import duckdb_computes_the_same, promotion_line
from assets.ods.promotions import promotions

LAKE_ASSETS = (promotions, promotion_line)
LAKE_CHECKS = (duckdb_computes_the_same,)

__all__ = ["LAKE_ASSETS", "LAKE_CHECKS", "duckdb_computes_the_same", "promotion_line", "promotions"]
