"""A small shop of its own: three tables whose days are around today, so that schedules and partitions are real."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from flashlake.orchestration import read_project
from storage_engine import Store

SALES = """
CREATE TABLE ods.sales (
  sale_id BIGINT NOT NULL, shop_id BIGINT NOT NULL, amount DECIMAL(12, 2), ds STRING NOT NULL COMMENT 'day'
) COMMENT 'Sales as received' PARTITIONED BY (ds) WITH (
  'bucket.key' = 'shop_id', 'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:shop'
);
"""
SALE = """
CREATE TABLE dwd.sale (
  sale_id BIGINT NOT NULL, shop_id BIGINT NOT NULL, amount DECIMAL(12, 2), ds STRING NOT NULL
) PARTITIONED BY (ds) WITH ('bucket.key' = 'shop_id', 'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:shop');
SET 'pipeline.name' = 'sale';
INSERT INTO dwd.sale SELECT sale_id, shop_id, amount, ds FROM ods.sales WHERE amount > 0;
"""
SHOP_DAY = """
CREATE TABLE dws.shop_day (
  shop_id BIGINT NOT NULL, ds STRING NOT NULL, sale_cnt BIGINT, amount DECIMAL(38, 2), PRIMARY KEY (shop_id, ds) NOT ENFORCED
) COMMENT 'Sales by shop and day' PARTITIONED BY (ds) WITH (
  'bucket.key' = 'shop_id', 'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:shop', 'asset.freshness' = '1d',
  'asset.schedule' = '* * * * *'
);
SET 'pipeline.name' = 'shop_day';
INSERT INTO dws.shop_day SELECT shop_id, ds, COUNT(*), SUM(amount) FROM ods.sales GROUP BY shop_id, ds;
"""
SHOP_BEST = """
CREATE TABLE dws.shop_best (
  shop_id BIGINT NOT NULL, ds STRING NOT NULL, best DECIMAL(12, 2), PRIMARY KEY (shop_id, ds) NOT ENFORCED
) PARTITIONED BY (ds) WITH (
  'bucket.key' = 'shop_id', 'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:shop', 'asset.backfill' = 'multi_run(2)'
);
SET 'pipeline.name' = 'shop_best';
INSERT INTO dws.shop_best SELECT shop_id, ds, MAX(amount) FROM ods.sales GROUP BY shop_id, ds;
"""
FILES = {"ods/sales": SALES, "dwd/sale": SALE, "dws/shop_day": SHOP_DAY, "dws/shop_best": SHOP_BEST}
TODAY = datetime.now(UTC).date()
START = (TODAY - timedelta(days=10)).isoformat()


def day(n: int) -> str:
    """The day `n` days before today, yyyy-MM-dd."""
    return (TODAY - timedelta(days=n)).isoformat()


def sales(ds: str, *amounts: str, shop: int = 7) -> pa.Table:
    """One sale per amount, in one shop and day."""
    return pa.table(
        {
            "sale_id": pa.array(range(len(amounts)), pa.int64()),
            "shop_id": pa.array([shop] * len(amounts), pa.int64()),
            "amount": pa.array(amounts).cast(pa.decimal128(12, 2)),
            "ds": [ds] * len(amounts),
        }
    )


def write_files(folder: Path) -> Path:
    """The shop's definitions below folder/assets; that folder."""
    for name, text in FILES.items():
        path = folder / "assets" / f"{name}.sql"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def create_tables(store: Store, project: Path) -> None:
    for definition in read_project(project / "assets"):
        store.execute(definition.statements)


def run_stream(store: Store) -> None:
    """Let the stream jobs do what there is to do."""
    from storage_engine.stream.run.worker import Worker

    Worker(store).run_until_idle()
