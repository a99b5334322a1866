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
from storage_engine.errors import UserError

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
MEASURE_PARTITIONS = 200
"""Spark's own default: what a join meets that nobody has tuned."""


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
    from deltalake import DeltaTable
    from pyspark.sql import functions as F

    version = DeltaTable(path).version()  # 10 ms; Spark's DESCRIBE HISTORY takes seconds
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
    last = session.sql(f"DESCRIBE HISTORY delta.`{path}` LIMIT 1").select("version", "operation", "operationMetrics").collect()[0]
    metrics: Mapping[str, str] = last["operationMetrics"] if last["operation"] == "DELETE" else {}
    return {
        "target_version": last["version"],
        "rows_deleted": int(metrics.get("numDeletedRows", 0)),
        "deletion_vectors_added": int(metrics.get("numDeletionVectorsAdded", 0)),
        "files_rewritten": int(metrics.get("numAddedFiles", 0)),
    }


def _in_weeks(weeks: Sequence[int]) -> str:
    return f"week IN ({', '.join(str(int(week)) for week in weeks)})"


class Clock:
    """Seconds of each phase: the time since the last lap belongs to the phase that is named."""

    def __init__(self, begin: float) -> None:
        self._last = begin
        self.seconds_of: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds_of[phase] = round(now - self._last, 1)
        self._last = now


def run(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The whole job; its report."""
    begin = time.monotonic()
    engine = EngineConfig.from_json(arguments["engine"])
    with tempfile.TemporaryDirectory(prefix="flashlake-events-") as scratch:
        wants_report = bool(arguments.get("report_file")) and not engine.remote  # a remote driver keeps its event log to itself
        if wants_report:
            engine = replace(engine, event_log=scratch)
        session = spark_session(engine, "promotion_join")
        clock = Clock(begin)
        clock.lap("session")
        try:
            report = _run(session, arguments, Path(scratch) if wants_report else None, clock)
        finally:
            session.stop()
    report["seconds"] = round(time.monotonic() - begin, 1)
    report["seconds_of"] = clock.seconds_of
    if arguments.get("report_file"):
        file = Path(arguments["report_file"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def _run(session: SparkSession, arguments: Mapping[str, Any], event_log: Path | None, clock: Clock) -> dict[str, Any]:
    from pyspark.sql import functions as F

    lines, lines_version = read_weeks(session, arguments["transactions"], LINE_COLUMNS, arguments.get("weeks", ()))
    lines = lines.cache()
    rows_of = dict(lines.groupBy("week").count().collect())
    weeks = sorted(rows_of)
    if not weeks:
        wanted = f"weeks {', '.join(map(str, arguments['weeks']))}" if arguments.get("weeks") else "any week"
        raise UserError(
            f"there are no transactions of {wanted}",
            where=arguments["transactions"],
            next_step="Name other weeks, or tier ods.transactions first.",
        )
    promotions, promotions_version = read_weeks(session, arguments["promotions"], PROMOTION_COLUMNS, weeks)
    promotions = promotions.cache()
    clock.lap("read")
    write_weeks(session, promotion_lines(lines, promotions), arguments["target"], weeks)
    clock.lap("write")
    deleted = delete_without_units(session, arguments["target"], weeks)
    written = session.read.format("delta").load(arguments["target"]).where(F.col("week").isin(weeks))
    is_promoted = (F.col("display_location") != "0") | (F.col("mailer_location") != "0")
    n_rows, n_promoted = written.agg(F.count("*"), F.count_if(is_promoted)).collect()[0]
    clock.lap("delete")
    report: dict[str, Any] = {
        "weeks": weeks,
        "lines": sum(rows_of.values()),
        "lines_version": lines_version,
        "promotions": promotions.count(),
        "promotions_version": promotions_version,
        "rows": n_rows,
        "rows_promoted": n_promoted,
        **deleted,
    }
    assert report["rows"] == report["lines"] - report["rows_deleted"], f"the join lost or doubled lines: {report}"
    if event_log is not None:
        from spark_jobs.skew_report import measure

        partitions = int(arguments.get("measure_partitions", MEASURE_PARTITIONS))
        report["skew"] = measure(session, lines, promotions, event_log=event_log, n_partitions=partitions).to_json()
        clock.lap("measure")
    return report


def metadata(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report as Dagster metadata: numbers with stable names are plotted over the runs."""
    values: dict[str, Any] = {
        "dagster/row_count": report["rows"],
        "rows_promoted": report["rows_promoted"],
        "rows_deleted": report["rows_deleted"],
        "deletion_vectors_added": report["deletion_vectors_added"],
        "delta_version": report["target_version"],
        "transactions_version": report["lines_version"],
        "promotions_version": report["promotions_version"],
        "weeks": ", ".join(str(week) for week in report["weeks"]),
        "seconds": report["seconds"],
    }
    if skew := report.get("skew"):
        values["finding"] = {"type": "md", "raw_value": skew["finding"]}
        values["skew"] = {"type": "json", "raw_value": {key: skew[key] for key in ("n_partitions", "keys", "runs")}}
        for entry in skew["runs"]:
            values[f"{entry['plan']}_{'on' if entry['skew_handling'] else 'off'}_max_over_median_task_cpu"] = entry["task_cpu_ms"]["ratio"]
    return values


def main() -> None:
    """Run the job by the arguments in the file of argv[1], tell Dagster what came of it, and print it as JSON."""
    from dagster_pipes import open_dagster_pipes

    arguments = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with open_dagster_pipes() as pipes:
        report = run(arguments)
        pipes.log.info(report["skew"]["finding"] if "skew" in report else f"{report['rows']} rows written")
        pipes.report_asset_materialization(metadata=metadata(report))
    sys.stdout.write(json.dumps({key: value for key, value in report.items() if key != "skew"}) + "\n")


if __name__ == "__main__":
    main()
