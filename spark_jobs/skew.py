"""Skew: how uneven a join is by its keys, and what adaptive execution does about it, measured.

Two plans give the same rows. "full_key" shuffles by (product_id, store_id, week). "by_product" shuffles by product_id only,
as a table laid out by product does, and tests store and week on the pairs. The second is the skewed one: see the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FULL_KEY = ("product_id", "store_id", "week")
PLANS = ("full_key", "by_product")
MAP_TASKS = 8
SKEW_FACTOR = 2.0
BYTES_MIN = 4096
_MARKERS = ("skew=true", "skewed")


@dataclass(frozen=True)
class KeySkew:
    """Rows per key of one side. heaviest: the largest keys with their rows; share: of the heaviest in all rows."""

    side: str
    keys: tuple[str, ...]
    n_rows: int
    n_keys: int
    median: float
    max: int
    share: float
    heaviest: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def key_skew(rows: DataFrame, side: str, keys: Sequence[str], n_heaviest: int = 5) -> KeySkew:
    """Count rows per key. One pass with a shuffle by the key."""
    counts = rows.groupBy(*keys).count().cache()
    try:
        total = counts.agg(F.sum("count"), F.count("*"), F.percentile_approx("count", 0.5), F.max("count")).collect()[0]
        top = counts.orderBy(F.desc("count"), *keys).limit(n_heaviest).collect()
    finally:
        counts.unpersist()
    n_rows, n_keys, middle, largest = (value or 0 for value in total)
    heaviest = tuple((", ".join(str(row[key]) for key in keys), int(row["count"])) for row in top)
    return KeySkew(
        side, tuple(keys), int(n_rows), int(n_keys), float(middle), int(largest), round(largest / n_rows, 5) if n_rows else 0.0, heaviest
    )


def pair_skew(lines: DataFrame, promotions: DataFrame, n_heaviest: int = 5) -> KeySkew:
    """Pairs per product that a join by product alone looks at: lines x promotions of the product."""
    left = lines.groupBy("product_id").agg(F.count("*").alias("n_lines"))
    right = promotions.groupBy("product_id").agg(F.count("*").alias("n_promotions"))
    pairs = left.join(right, "product_id").select("product_id", (F.col("n_lines") * F.col("n_promotions")).alias("count")).cache()
    try:
        total = pairs.agg(F.sum("count"), F.count("*"), F.percentile_approx("count", 0.5), F.max("count")).collect()[0]
        top = pairs.orderBy(F.desc("count"), "product_id").limit(n_heaviest).collect()
    finally:
        pairs.unpersist()
    n_rows, n_keys, middle, largest = (value or 0 for value in total)
    heaviest = tuple((str(row["product_id"]), int(row["count"])) for row in top)
    return KeySkew(
        "pairs",
        ("product_id",),
        int(n_rows),
        int(n_keys),
        float(middle),
        int(largest),
        round(largest / n_rows, 5) if n_rows else 0.0,
        heaviest,
    )


def joined(lines: DataFrame, promotions: DataFrame, plan: str) -> DataFrame:
    """Every line with the promotions of its product, store and week; a line without one is kept, with nulls."""
    left, right = lines.alias("l"), promotions.hint("merge").alias("p")
    same = {key: F.col(f"l.{key}") == F.col(f"p.{key}") for key in FULL_KEY}
    if plan == "by_product":
        # Bounds instead of equality keep the planner from taking store and week as join keys: they are tested on each pair.
        condition = same["product_id"]
        for key in ("store_id", "week"):
            condition = condition & F.col(f"l.{key}").between(F.col(f"p.{key}"), F.col(f"p.{key}"))
    else:
        condition = same["product_id"] & same["store_id"] & same["week"]
    return left.join(right, condition, "left").select("l.*", "p.display_location", "p.mailer_location")


@dataclass(frozen=True)
class JoinRun:
    """One measured run: its job group in the event log, rows and checksum of the result, and the final plan's text."""

    group: str
    n_rows: int
    checksum: int
    plan_text: str

    @property
    def skew_markers(self) -> tuple[str, ...]:
        return tuple(marker for marker in _MARKERS if marker in self.plan_text)


def measure_join(
    session: SparkSession, lines: DataFrame, promotions: DataFrame, plan: str, *, group: str, n_partitions: int, skew_bytes: int | None
) -> JoinRun:
    """Run a join to its end and throw the rows away but for a count and a checksum.

    n_partitions  shuffle partitions; not coalesced, so that runs are comparable task by task
    skew_bytes    None: adaptive skew handling off; else on, and a partition above this size and SKEW_FACTOR times the median is split
    """
    settings = {
        "spark.sql.shuffle.partitions": str(n_partitions),
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        "spark.sql.adaptive.autoBroadcastJoinThreshold": "-1",
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
        "spark.sql.adaptive.skewJoin.enabled": str(skew_bytes is not None).lower(),
        "spark.sql.adaptive.skewJoin.skewedPartitionFactor": str(SKEW_FACTOR),
        "spark.sql.adaptive.skewJoin.skewedPartitionThresholdInBytes": str(skew_bytes or 0),
        "spark.sql.adaptive.advisoryPartitionSizeInBytes": str(skew_bytes or 64 << 20),
    }
    with changed(session, settings):
        session.addTag(group)
        # Spark cuts a skewed partition along the map tasks that wrote it: with one map task there is nothing to cut.
        spread = lines.repartition(MAP_TASKS)
        result = joined(spread, promotions, plan).agg(
            F.count("*"), F.sum(F.xxhash64("basket_id", "product_id", "display_location", "mailer_location").cast("decimal(38,0)"))
        )
        n_rows, checksum = result.collect()[0]  # collect() runs this very plan; first() would plan another
        text: str = result._jdf.queryExecution().executedPlan().toString()  # pyright: ignore[reportOptionalCall]  # py4j has no types
        session.removeTag(group)
    return JoinRun(group, n_rows, int(checksum or 0), text)


@contextmanager
def changed(session: SparkSession, settings: dict[str, str]) -> Iterator[None]:
    """Settings for the length of a block; then as they were."""
    before = {key: session.conf.get(key, None) for key in settings}
    for key, value in settings.items():
        session.conf.set(key, value)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                session.conf.unset(key)
            else:
                session.conf.set(key, value)
