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


SHORT_WEEKS_MAX = 8


class PromotionLineConfig(dg.Config):
    """weeks: the weeks to join; empty: every week that ods.transactions has in the lake. report: also measure skew and task times.

    measure_partitions: shuffle partitions of the measurements; 0: the job's own default.
    """

    weeks: list[int] = Field(default_factory=list)
    report: bool = True
    measure_partitions: int = Field(default=0, ge=0)


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
            **({"measure_partitions": config.measure_partitions} if config.measure_partitions else {}),
        },
        short=0 < len(config.weeks) <= SHORT_WEEKS_MAX,
    )


@dg.asset_check(
    asset=promotion_line,
    name="duckdb_computes_the_same",
    description="DuckDB, over the same versions of both inputs, gives the rows that Spark wrote; their deletion vectors are honoured.",
)
def duckdb_computes_the_same(context: dg.AssetCheckExecutionContext, lake: Lake) -> dg.AssetCheckResult:
    latest = context.instance.get_latest_materialization_event(promotion_line.key)
    if latest is None or latest.asset_materialization is None:
        return dg.AssetCheckResult(passed=False, description="never materialized")
    told = {name: value.value for name, value in latest.asset_materialization.metadata.items()}
    weeks = f"week IN ({told['weeks']})"
    lines = lake.scan("ods.transactions", told["transactions_version"])
    promotions = lake.scan("ods.promotions", told["promotions_version"])
    written = lake.scan("dws.promotion_line", told["delta_version"])
    expected = f"""
        SELECT basket_id, product_id, store_id, household_id, quantity, sales_value, ds,
               coalesce(display, '0') AS display_location, coalesce(mailer, '0') AS mailer_location, week
        FROM (SELECT * FROM {lines} WHERE {weeks} AND quantity IS DISTINCT FROM 0)
        LEFT JOIN (
          SELECT product_id, store_id, week, max(display_location) AS display, max(mailer_location) AS mailer
          FROM {promotions} WHERE {weeks} GROUP BY ALL
        ) USING (product_id, store_id, week)"""
    actual = f"SELECT {', '.join(COLUMNS)} FROM {written} WHERE {weeks}"
    with lake.duckdb() as con:
        con.execute(f"CREATE TEMP TABLE expected AS {expected}")
        con.execute(f"CREATE TEMP TABLE actual AS {actual}")
        different = "(FROM expected EXCEPT ALL FROM actual) UNION ALL (FROM actual EXCEPT ALL FROM expected)"
        ((n_differing,),) = con.execute(f"SELECT count(*) FROM ({different})").fetchall()
        ((n_rows,),) = con.execute("SELECT count(*) FROM actual").fetchall()
    return dg.AssetCheckResult(
        passed=n_differing == 0 and n_rows == told["dagster/row_count"],
        description=f"{n_rows} rows, {n_differing} differ",
        metadata={"rows": n_rows, "rows_differing": n_differing, "delta_version": told["delta_version"]},
    )
