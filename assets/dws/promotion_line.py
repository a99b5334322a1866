"""dws.promotion_line: each transaction line with the placement and mailer of its product, store and week. A Spark job; lake only."""

import dagster as dg
from pydantic import Field

from resources import Lake, Spark

COLUMNS = {
    "basket_id": "BIGINT",
    "product_id": "BIGINT",
    "store_id": "BIGINT",
    "household_id": "BIGINT",
    "quantity": "BIGINT",
    "sales_value": "DECIMAL(12, 2)",
    "ds": "STRING",
    "display_location": "STRING",
    "mailer_location": "STRING",
    "week": "INT",
}


class PromotionLineConfig(dg.Config):
    """weeks: the weeks to join; empty: every week that ods.transactions has in the lake. report: also measure skew and task times."""

    weeks: list[int] = Field(default_factory=list)
    report: bool = True


@dg.asset(
    key=["dws", "promotion_line"],
    deps=[["ods", "transactions"], ["ods", "promotions"]],
    group_name="dws",
    owners=["team:marketing"],
    kinds={"pyspark", "deltalake"},
    description="Transaction lines with the promotion of their product, store and week. Joined by Spark, written with deletion vectors.",
    metadata={"dagster/column_schema": dg.TableSchema([dg.TableColumn(name, type=kind) for name, kind in COLUMNS.items()])},
    pool="spark",
)
def promotion_line(context: dg.AssetExecutionContext, config: PromotionLineConfig, lake: Lake, spark: Spark) -> dg.MaterializeResult:
    return spark.run(
        context,
        "promotion_join",
        {
            "transactions": str(lake.path("ods.transactions")),
            "promotions": str(lake.path("ods.promotions")),
            "target": str(lake.path("dws.promotion_line")),
            "report_file": str(lake.root / "reports" / "promotion_join.json") if config.report else "",
            "weeks": config.weeks,
        },
    )
