"""Promotion join: each transaction line with the placement and mailer of its product, store and week.

Reads two Delta tables at fixed versions, joins, writes weeks of a third in one commit, with deletion vectors on.
Run as `python -m spark_jobs.promotion_join ARGUMENTS.json`, by Dagster through Pipes or by hand (then it only prints its report).

    transactions, promotions, target   folders of Delta tables
    weeks        weeks to join; empty: all that the transactions have
    report_file  where the report goes as JSON, with the skew measurements; "": no measurements
    measure_partitions  shuffle partitions of the measurements
    engine       EngineConfig
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_jobs.session import EngineConfig, spark_session

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

LINE_COLUMNS = ("basket_id", "product_id", "store_id", "household_id", "quantity", "sales_value", "ds", "week")
PROMOTION_COLUMNS = ("product_id", "store_id", "week", "display_location", "mailer_location")
RESULT_COLUMNS = (
    "basket_id",
    "product_id",
    "store_id",
    "household_id",
    "quantity",
    "sales_value",
    "ds",
    "display_location",
    "mailer_location",
    "week",
)
MEASURE_PARTITIONS = 64


def promotion_lines(lines: DataFrame, promotions: DataFrame) -> DataFrame:
    """One row per line. A product that was published twice for a store and week keeps the larger code of each column.

    A line without promotion has '0' in both columns, which is the source's code for "none".
    """
    from pyspark.sql import functions as F

    from spark_jobs.skew import joined

    rest = [name for name in LINE_COLUMNS if name not in ("basket_id", "product_id")]
    pairs = joined(lines, promotions, "full_key")
    return (
        pairs.groupBy("basket_id", "product_id")
        .agg(
            *(F.first(name).alias(name) for name in rest),
            F.coalesce(F.max("display_location"), F.lit("0")).alias("display_location"),
            F.coalesce(F.max("mailer_location"), F.lit("0")).alias("mailer_location"),
        )
        .select(*RESULT_COLUMNS)
    )


def read_weeks(session: SparkSession, path: str, columns: Sequence[str], weeks: Sequence[int]) -> tuple[DataFrame, int]:
    """The rows of some weeks (empty: all), and the table version they are read at."""
    from pyspark.sql import functions as F

    version = session.sql(f"DESCRIBE HISTORY delta.`{path}` LIMIT 1").select("version").collect()[0][0]
    rows = session.read.format("delta").option("versionAsOf", version).load(path).select(*columns)
    return (rows.where(F.col("week").isin(list(weeks))) if weeks else rows), version


def write_weeks(session: SparkSession, rows: DataFrame, path: str, weeks: Sequence[int]) -> None:
    """Replace these weeks of the target in one commit; a target that does not exist is made, with deletion vectors on."""
    fields = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in rows.schema.fields)
    properties = "'delta.enableDeletionVectors' = 'true'"
    session.sql(f"CREATE TABLE IF NOT EXISTS delta.`{path}` ({fields}) USING DELTA PARTITIONED BY (week) TBLPROPERTIES ({properties})")
    where = _in_weeks(weeks)
    rows.repartition("week").write.format("delta").mode("overwrite").option("replaceWhere", where).save(path)


def delete_without_units(session: SparkSession, path: str, weeks: Sequence[int]) -> dict[str, int]:
    """Lines without units are not sales. Deleted by deletion vectors: no data file is written again. Numbers of that commit."""
    session.sql(f"DELETE FROM delta.`{path}` WHERE quantity = 0 AND {_in_weeks(weeks)}")
    last = session.sql(f"DESCRIBE HISTORY delta.`{path}` LIMIT 1").select("operation", "operationMetrics").collect()[0]
    metrics: Mapping[str, str] = last["operationMetrics"] if last["operation"] == "DELETE" else {}
    return {
        "rows_deleted": int(metrics.get("numDeletedRows", 0)),
        "deletion_vectors_added": int(metrics.get("numDeletionVectorsAdded", 0)),
        "files_rewritten": int(metrics.get("numAddedFiles", 0)),
    }


def _in_weeks(weeks: Sequence[int]) -> str:
    return f"week IN ({', '.join(str(int(week)) for week in weeks)})"


def run(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The whole job; its report."""
    begin = time.monotonic()
    engine = EngineConfig.from_json(arguments["engine"])
    with tempfile.TemporaryDirectory(prefix="flashlake-events-") as scratch:
        wants_report = bool(arguments.get("report_file")) and not engine.remote  # a remote driver keeps its event log to itself
        if wants_report:
            engine = replace(engine, event_log=scratch)
        session = spark_session(engine, "promotion_join")
        try:
            report = _run(session, arguments, Path(scratch) if wants_report else None)
        finally:
            session.stop()
    report["seconds"] = round(time.monotonic() - begin, 1)
    if arguments.get("report_file"):
        file = Path(arguments["report_file"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def _run(session: SparkSession, arguments: Mapping[str, Any], event_log: Path | None) -> dict[str, Any]:
    lines, lines_version = read_weeks(session, arguments["transactions"], LINE_COLUMNS, arguments.get("weeks", ()))
    weeks = sorted(row[0] for row in lines.select("week").distinct().collect())
    if not weeks:
        raise SystemExit(f"there are no transactions of these weeks in {arguments['transactions']}; tier ods.transactions first")
    promotions, promotions_version = read_weeks(session, arguments["promotions"], PROMOTION_COLUMNS, weeks)
    lines, promotions = lines.cache(), promotions.cache()
    report: dict[str, Any] = {
        "weeks": weeks,
        "lines": lines.count(),
        "lines_version": lines_version,
        "promotions": promotions.count(),
        "promotions_version": promotions_version,
    }
    write_weeks(session, promotion_lines(lines, promotions), arguments["target"], weeks)
    report |= delete_without_units(session, arguments["target"], weeks)
    written = session.read.format("delta").load(arguments["target"])
    report["rows"] = written.where(written.week.isin(weeks)).count()
    report["rows_promoted"] = written.where(
        written.week.isin(weeks) & ((written.display_location != "0") | (written.mailer_location != "0"))
    ).count()
    report["target_version"] = session.sql(f"DESCRIBE HISTORY delta.`{arguments['target']}` LIMIT 1").select("version").collect()[0][0]
    assert report["rows"] == report["lines"] - report["rows_deleted"], f"the join lost or doubled lines: {report}"
    if event_log is not None:
        from spark_jobs.skew_report import measure

        partitions = int(arguments.get("measure_partitions", MEASURE_PARTITIONS))
        report["skew"] = measure(session, lines, promotions, event_log=event_log, n_partitions=partitions).to_json()
    return report


def metadata(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report as Dagster metadata: numbers with stable names are plotted over the runs."""
    values: dict[str, Any] = {
        "dagster/row_count": report["rows"],
        "rows_promoted": report["rows_promoted"],
        "rows_deleted": report["rows_deleted"],
        "deletion_vectors_added": report["deletion_vectors_added"],
        "delta_version": report["target_version"],
        "weeks": ", ".join(str(week) for week in report["weeks"]),
        "seconds": report["seconds"],
    }
    if skew := report.get("skew"):
        values["finding"] = {"type": "md", "raw_value": skew["finding"]}
        values["skew"] = {"type": "json", "raw_value": {key: skew[key] for key in ("n_partitions", "keys", "runs")}}
        for entry in skew["runs"]:
            values[f"{entry['plan']}_{'on' if entry['skew_handling'] else 'off'}_max_over_median_task_ms"] = entry["task_ms"]["ratio"]
    return values


def main() -> None:
    from dagster_pipes import open_dagster_pipes

    arguments = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with open_dagster_pipes() as pipes:
        report = run(arguments)
        pipes.log.info(report["skew"]["finding"] if "skew" in report else f"{report['rows']} rows written")
        pipes.report_asset_materialization(metadata=metadata(report))
    sys.stdout.write(json.dumps({key: value for key, value in report.items() if key != "skew"}) + "\n")


if __name__ == "__main__":
    main()
