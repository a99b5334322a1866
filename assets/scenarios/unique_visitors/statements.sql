-- Scenario 5: unique visitors. Printed but for three corrections, each marked: the mapping table's name in two statements, the number N of
-- shards, and a hint that lets the lookup of both paths give an id to a user who has none yet.
USE db;

-- Ours: the article prints no DDL for the log.
CREATE TABLE log_exp_ri (user_id BIGINT, ds STRING, hh STRING, mm STRING);

CREATE TABLE `fluss_catalog`.`db`.`user_mapping_table` (
user_id BIGINT COMMENT 'Original User ID',
uid_int64 BIGINT COMMENT 'Auto-incremented Globally Unique Integer ID',
update_time TIMESTAMP(3) COMMENT 'Update Time',
PRIMARY KEY (user_id) NOT ENFORCED
) WITH (
'bucket.key' = 'user_id',
'bucket.num' = '${BUCKET_NUM}',
'auto-increment.fields' = 'uid_int64', -- Enable auto-increment column
'table.log.arrow.compression.type' = 'zstd'
);


SET 'pipeline.name' = 'uv_mapping';
INSERT INTO `fluss_catalog`.`db`.`user_mapping_table` (user_id)
SELECT /*+ REPLICATED_SHUFFLE_HASH(t2) */
t1.user_id
FROM `fluss_catalog`.`db`.`log_exp_ri` t1
LEFT JOIN `fluss_catalog`.`db`.`user_mapping_table`
/*+ OPTIONS(
'lookup.insert-if-not-exists' = 'true',
'lookup.cache' = 'PARTIAL',
'lookup.partial-cache.max-rows' = '500000',
'lookup.partial-cache.expire-after-write' = '1h',
'lookup.partial-cache.cache-missing-key' = 'false'
) */
FOR SYSTEM_TIME AS OF PROCTIME() AS t2
ON t1.user_id = t2.user_id
GROUP BY t1.user_id;


-- Path A: bitmaps merged in the store.
CREATE TABLE IF NOT EXISTS `fluss_catalog`.`db`.`ads_uv_agg` (
ds STRING COMMENT 'Date partition yyyyMMdd',
hh STRING COMMENT 'Hour HH',
mm STRING COMMENT 'Minute mm',
shard_id INT COMMENT 'Shard ID',
uv_bitmap BYTES COMMENT 'Minute-level user bitmap',
PRIMARY KEY (ds, hh, mm, shard_id) NOT ENFORCED
)
PARTITIONED BY (ds)
WITH (
'bucket.key' = 'shard_id',
'bucket.num' = '${BUCKET_NUM}',
'table.merge-engine' = 'aggregation', -- Enable aggregation engine; otherwise, Bytes fields cannot be automatically merged
'fields.uv_bitmap.agg' = 'rbm32', -- Specify that the Bytes field uses the rbm32 algorithm for Union aggregation
'table.auto-partition.enabled' = 'true',
'table.auto-partition.time-unit' = 'day',
'table.auto-partition.key' = 'ds'
);


-- Corrected: `user_mapping` -> `user_mapping_table` (the name it is created under); N -> ${N}; 'lookup.insert-if-not-exists' added. Without it
-- an event whose user the mapping job has not met yet has a null shard_id, which the key of ads_uv_agg refuses: three jobs read one log, each
-- at its own pace, so that this happens. An id is given once, whoever asks first.
SET 'pipeline.name' = 'uv_bitmaps';
INSERT INTO fluss_catalog.db.ads_uv_agg
SELECT
t1.ds,
t1.hh,
t1.mm,
CAST(t2.uid_int64 % ${N} AS INT) AS shard_id,
BITMAP_TO_BYTES(BITMAP_BUILD_AGG(CAST((t2.uid_int64 / ${N}) AS INT))) AS uv_bitmap
FROM `fluss_catalog`.`db`.`log_exp_ri` t1
LEFT JOIN `fluss_catalog`.`db`.`user_mapping_table`
/*+ OPTIONS('lookup.insert-if-not-exists' = 'true', 'lookup.cache' = 'PARTIAL', 'lookup.partial-cache.max-rows' = '500000') */
FOR SYSTEM_TIME AS OF PROCTIME() AS t2
ON t1.user_id = t2.user_id
GROUP BY t1.ds, t1.hh, t1.mm, CAST(t2.uid_int64 % ${N} AS INT);


-- The merge over shards, ours: the count per minute, kept; a day's is a query over the bitmaps (scenario.py).
CREATE MATERIALIZED VIEW uv_minute REFRESH ASYNC AS
SELECT ds, hh, mm, SUM(RB_CARDINALITY(uv_bitmap)) AS users FROM ads_uv_agg GROUP BY ds, hh, mm;

-- Path B: rows to the lake, deduplicated when they are queried. The elided columns are hour and minute of the last visit.
CREATE TABLE fluss_catalog.db.ads_uv_detail (
ds STRING,
hh STRING,
mm STRING,
shard_id INT,
uid_int32 INT,
PRIMARY KEY (ds, shard_id, uid_int32) NOT ENFORCED
) WITH (
'table.datalake.enabled' = 'true', -- Enable Streaming-Lakehouse Unification
'table.datalake.freshness' = '10s' -- Second-level synchronization
);


-- Corrected as above.
SET 'pipeline.name' = 'uv_detail';
INSERT INTO fluss_catalog.db.ads_uv_detail
SELECT
t1.ds,
t1.hh,
t1.mm,
CAST(t2.uid_int64 % ${N} AS INT) AS shard_id, -- Shard ID, used for parallel aggregation
CAST((t2.uid_int64 / ${N}) AS INT) AS uid_int32 -- Compressed ID, used for Bitmap
FROM `fluss_catalog`.`db`.`log_exp_ri` t1
LEFT JOIN `fluss_catalog`.`db`.`user_mapping_table`
/*+ OPTIONS('lookup.insert-if-not-exists' = 'true', 'lookup.cache' = 'PARTIAL','lookup.partial-cache.max-rows' = '500000','lookup.partial-cache.expire-after-access' = '2min') */
FOR SYSTEM_TIME AS OF PROCTIME() AS t2
ON t1.user_id = t2.user_id;


-- StarRocks' view over the lake; here over the same table's rows in lake and store. It prints no REFRESH: it is refreshed by hand.
CREATE MATERIALIZED VIEW mv_global_uv AS
SELECT
t.ds,
SUM(t.rb_partial) as rbm_user_count -- Globally merge partial Bitmaps from each shard
FROM (
SELECT
ds,
shard_id,
BITMAP_UNION_COUNT(TO_BITMAP(uid_int32)) as rb_partial -- Partial Bitmap count
FROM
paimon_catalog.db.ads_uv_detail
WHERE
ds = '${date}'
GROUP BY
ds, shard_id
) t
GROUP BY t.ds;

