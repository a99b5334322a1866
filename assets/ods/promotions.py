"""ods.promotions: where a product was placed and advertised, by store and week. 20,940,529 rows; only the lake has it.

Partitioned by week, so that a job reads the weeks it needs and no task scans the whole year.
"""

import dagster as dg
from pydantic import Field

from resources import Lake

COLUMNS = {
    "product_id": "BIGINT",
    "store_id": "BIGINT",
    "display_location": "STRING",
    "mailer_location": "STRING",
    "week": "INT",
}
BATCH_ROWS = 131_072


class PromotionsConfig(dg.Config):
    """weeks: the weeks to load (replacing what the lake has of them); empty: all 53."""

    weeks: list[int] = Field(default_factory=list)


@dg.asset(
    key=["ods", "promotions"],
    group_name="ods",
    owners=["team:marketing"],
    kinds={"deltalake", "parquet"},
    description="Placement and mailer of products by store and week, as published. Lake only.",
    metadata={"dagster/column_schema": dg.TableSchema([dg.TableColumn(name, type=kind) for name, kind in COLUMNS.items()])},
    pool="warehouse",
)
def promotions(context: dg.AssetExecutionContext, config: PromotionsConfig, lake: Lake) -> dg.MaterializeResult:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    from flashlake.completejourney import data_file

    schema = pa.schema(
        [
            ("product_id", pa.int64()),
            ("store_id", pa.int64()),
            ("display_location", pa.string()),
            ("mailer_location", pa.string()),
            ("week", pa.int32()),
        ]
    )
    where = pc.field("week").isin(config.weeks) if config.weeks else None
    scanner = ds.dataset(data_file("promotions")).scanner(columns=schema.names, filter=where, batch_size=BATCH_ROWS)
    n_rows = 0

    def batches() -> "pa.RecordBatchReader":
        nonlocal n_rows
        for batch in scanner.to_batches():
            n_rows += batch.num_rows
            if batch.num_rows:
                yield batch.cast(schema)

    predicate = f"week IN ({', '.join(str(week) for week in sorted(config.weeks))})" if config.weeks else None
    version = lake.replace("ods.promotions", schema, batches(), partition_by="week", where=predicate)
    context.log.info(f"{n_rows} rows in version {version}")
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": n_rows,
            "delta_version": version,
            "weeks": len(config.weeks) or 53,
            "dagster/uri": str(lake.path("ods.promotions")),
        }
    )
