-- Who bought, by store and day, as bitmaps over dense household ids: shard = id % 4, member = id / 4.
-- The store merges partial bitmaps; a union of bitmaps never counts a household twice.
CREATE TABLE dws.store_day_uv (
  store_id BIGINT NOT NULL,
  stat_date STRING NOT NULL COMMENT 'yyyy-MM-dd',
  shard_id INT NOT NULL COMMENT 'Dense id % 4',
  uv_bitmap BYTES COMMENT 'Roaring bitmap (32 bit) of dense id / 4',
  PRIMARY KEY (store_id, stat_date, shard_id) NOT ENFORCED
) COMMENT 'Unique households by store and day' PARTITIONED BY (stat_date) WITH (
  'bucket.key' = 'shard_id', 'bucket.num' = '2',
  'table.merge-engine' = 'aggregation', 'fields.uv_bitmap.agg' = 'rbm32',
  'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '10s',
  'asset.partitions' = 'day(stat_date)', 'asset.owner' = 'team:customer', 'asset.schedule' = '0 2 * * *', 'asset.freshness' = '1d'
);

SET 'pipeline.name' = 'store_day_uv';
INSERT INTO dws.store_day_uv
SELECT
  t.store_id,
  t.ds,
  CAST(m.household_no % 4 AS INT) AS shard_id,
  BITMAP_TO_BYTES(BITMAP_BUILD_AGG(CAST(m.household_no / 4 AS INT))) AS uv_bitmap
FROM dwd.order_line AS t
LEFT JOIN dwd.household_mapping /*+ OPTIONS('lookup.insert-if-not-exists' = 'true') */
  FOR SYSTEM_TIME AS OF PROCTIME() AS m ON t.household_id = m.household_id
GROUP BY t.store_id, t.ds, CAST(m.household_no % 4 AS INT);
