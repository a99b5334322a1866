-- Statements as printed in the article "Taobao Instant Commerce: Real-Time Decisions at Scale with Fluss" (Apache Fluss blog).
-- ${...} are the article's placeholders, "fields omitted" its elisions. The view of scenario 1 is printed without its semicolon;
-- the cube query of scenario 4 is cut off before FROM and left out.

CREATE TABLE `fluss_catalog`.`db`.`order_ri` (
order_id STRING,
user_id STRING,
order_time STRING,
pay_amt STRING,
ds STRING,
PRIMARY KEY (user_id, ds, order_id) NOT ENFORCED
) PARTITIONED BY (ds)
WITH (
'bucket.key' = 'user_id',
'bucket.num' = '${BUCKET_NUM}',
'table.auto-partition.enabled' = 'true',
'table.auto-partition.key' = 'ds'
);

CREATE TABLE `fluss_catalog`.`db`.`log_page_ri` (
user_id STRING,
first_page_time STRING,
pv BIGINT,
ds STRING,
PRIMARY KEY (user_id, ds) NOT ENFORCED
) PARTITIONED BY (ds)
WITH (
'bucket.key' = 'user_id',
'bucket.num' = '${BUCKET_NUM}',
'table.auto-partition.enabled' = 'true',
'table.auto-partition.key' = 'ds'
);

CREATE TABLE `fluss_catalog`.`db`.`log_page_ord_detail_ri`
(
`user_id` STRING COMMENT 'User ID',
`order_id` STRING COMMENT 'Order ID',
`first_page_time` STRING COMMENT 'First Visit Time',
`order_time` STRING COMMENT 'Order Placement Time',
`pv` BIGINT COMMENT 'Page Views (Visit Count)',
`pay_amt` STRING COMMENT 'Payment Amount',
`is_matched` STRING COMMENT 'Match Status',
`ds` STRING COMMENT 'Date Partition',
PRIMARY KEY (user_id, order_id, ds) NOT ENFORCED
)
COMMENT 'Attribution Result Table'
PARTITIONED BY (ds)
WITH (
'bucket.key' = 'user_id,order_id',
'bucket.num' = '${BUCKET_NUM}',
'table.auto-partition.enabled' = 'true',
'table.auto-partition.key' = 'ds',
'table.datalake.enabled' = 'true', -- Enable Streaming-Lakehouse Unification
'table.datalake.freshness' = '3min' -- Controls Lakehouse Table Freshness
);

CREATE TEMPORARY VIEW matched_page_ord_detail AS
SELECT
l.ds,
l.user_id,
l.first_page_time,
l.pv,
o.order_id,
o.order_time,
CASE WHEN o.order_time >= l.first_page_time THEN '1' ELSE '0' END AS is_matched
FROM `fluss_catalog`.`db`.`log_page_ri` l
LEFT JOIN `fluss_catalog`.`db`.`order_ri` o
ON l.user_id = o.user_id AND l.ds = o.ds
;

CREATE TABLE shop_stat_wide (
shop_id BIGINT NOT NULL,
stat_date STRING NOT NULL,
stat_hour STRING NOT NULL,
exp_cnt BIGINT, -- Exposure Count
page_cnt BIGINT, -- Page View Count
PRIMARY KEY (shop_id, stat_date, stat_hour) NOT ENFORCED
) WITH (
'bucket.num' = '${BUCKET_NUM}',
'bucket.key' = 'shop_id'
);

INSERT INTO shop_stat_wide (shop_id, stat_date, stat_hour, exp_cnt)
SELECT
shop_id,
stat_date,
stat_hour,
SUM(exp_cnt) AS exp_cnt
FROM exposure_log
GROUP BY shop_id, stat_date, stat_hour;

INSERT INTO shop_stat_wide (shop_id, stat_date, stat_hour, page_cnt)
SELECT
shop_id,
stat_date,
stat_hour,
SUM(page_cnt) AS page_cnt
FROM page_log
GROUP BY shop_id, stat_date, stat_hour;

CREATE TABLE `fluss_catalog`.`db`.`order_dtm`
(
`ds` STRING COMMENT 'Day Partition',
`mm` STRING COMMENT 'Minute',
`order_source` STRING COMMENT 'Order Source',
`order_cnt` BIGINT COMMENT 'Order Count',
PRIMARY KEY (ds, mm, order_source) NOT ENFORCED
)
COMMENT 'Real-time Order Minute-Accumulation Stream'
PARTITIONED BY (ds)
WITH (
'bucket.key' = 'mm,order_source',
'bucket.num' = '${BUCKET_NUM}',
'table.auto-partition.enabled' = 'true',
'table.auto-partition.time-unit' = 'day',
'table.auto-partition.key' = 'ds',
'table.auto-partition.num-precreate' = '0', -- Number of future partitions to pre-create.
'table.auto-partition.num-retention' = '2', -- Retain the last N partitions; automatically delete older ones.
'table.replication.factor' = '${REPLICATION_FACTOR}',
'table.log.arrow.compression.type' = 'zstd'
);

CREATE TABLE `fluss_catalog`.`db`.`order_forecast_mm`
(
`ds` STRING COMMENT 'Date Partition (Format: yyyymmdd)',
`mm` STRING COMMENT 'Minute (Format: HH:mm or HHmm)',
`order_source` STRING COMMENT 'Order Source',
`cumulative_order_cnt` BIGINT COMMENT 'Cumulative Order Count up to the current minute',
`forecast_daily_order_cnt` STRING COMMENT 'Predicted Total Daily Order Volume (24h) based on historical ratios',
PRIMARY KEY (ds, mm, order_source) NOT ENFORCED
)
COMMENT 'Order Forecast Stream'
PARTITIONED BY (ds)
WITH (
'bucket.key' = 'mm,order_source',
'bucket.num' = '${BUCKET_NUM}',
'table.auto-partition.enabled' = 'true',
'table.auto-partition.time-unit' = 'day',
'table.auto-partition.key' = 'ds',
'table.auto-partition.num-precreate' = '0',
'table.auto-partition.num-retention' = '2',
'table.replication.factor' = '${REPLICATION_FACTOR}',
'table.log.arrow.compression.type' = 'zstd',
'table.datalake.enabled' = 'true', -- Enable Streaming-Lakehouse Unification
'table.datalake.freshness' = '30s' -- Controls Lakehouse Table Freshness
);

CREATE TEMPORARY FUNCTION predict_hour_gmv AS 'com.example.flink.udf.FutureHourlyForecastUDF';

CREATE TEMPORARY VIEW trd_item_order AS
SELECT
ds,
mm,
order_source,
order_cnt,
PROCTIME() AS proc_time
FROM `fluss_catalog`.`db`.`order_dtm`;

INSERT INTO `fluss_catalog`.`db`.`order_forecast_mm`
SELECT
t1.ds,
t1.mm,
t1.order_source,
t1.order_cnt AS cumulative_order_cnt,
predict_hour_gmv(
COALESCE(t1.order_cnt, 0),
t1.mm,
t2.minute_ratio_feat
) AS forecast_hour_order_cnt
FROM
trd_item_order t1
LEFT JOIN paimon_catalog.db.order_mm_his_str /*+ OPTIONS(
'scan.partitions' = 'max_pt()',
'lookup.dynamic-partition.refresh-interval' = '1 h'
) */
FOR SYSTEM_TIME AS OF t1.proc_time AS t2 ON t1.order_source = t2.channel_id;

CREATE TABLE `fluss_catalog`.`db`.`log_page_ri`
(
`col1` STRING,
`col2` STRING,
`col3` STRING,
`col4` STRING
-- ....... Intermediate fields omitted
,ds STRING
)
COMMENT 'Page View Log Stream'
PARTITIONED BY (ds) -- Partition key defined above
WITH (
'bucket.num' = '${BUCKET_NUM}',
'table.auto-partition.enabled' = 'true',
'table.auto-partition.time-unit' = 'day',
'table.auto-partition.key' = 'ds',
'table.auto-partition.num-precreate' = '0',
'table.auto-partition.num-retention' = '1',
'table.log.ttl' = '${LOG_TTL}',
'table.replication.factor'='${REPLICATION_FACTOR}',
'table.log.arrow.compression.type' = 'zstd',
'table.datalake.enabled' = 'true', -- Enable Streaming-Lakehouse Unification
'table.datalake.freshness' = '3min' -- Control lake table data freshness
)
;

INSERT INTO `fluss_catalog`.`db`.ads_gray_monitoring_ri /*+ OPTIONS('client.writer.enable-idempotence'='false') */
SELECT
col1,
col2,
col3,
col4,
-- ......... Intermediate fields omitted
ds
FROM `fluss-ali-log`.`db`.`log_page_ri`
WHERE KEYVALUE(`args`, ',', '=', 'release_type') = 'grey' -- Canary release flag
;

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

INSERT INTO fluss_catalog.db.ads_uv_agg
SELECT
t1.ds,
t1.hh,
t1.mm,
CAST(t2.uid_int64 % N AS INT) AS shard_id,
BITMAP_TO_BYTES(BITMAP_BUILD_AGG(CAST((t2.uid_int64 / N) AS INT))) AS uv_bitmap
FROM `fluss_catalog`.`db`.`log_exp_ri` t1
LEFT JOIN `fluss_catalog`.`db`.`user_mapping`
/*+ OPTIONS('lookup.cache' = 'PARTIAL', 'lookup.partial-cache.max-rows' = '500000') */
FOR SYSTEM_TIME AS OF PROCTIME() AS t2
ON t1.user_id = t2.user_id
GROUP BY t1.ds, t1.hh, t1.mm, CAST(t2.uid_int64 % N AS INT);

CREATE TABLE fluss_catalog.db.ads_uv_detail (
ds STRING,
-- ....... Intermediate fields omitted
shard_id INT,
uid_int32 INT,
PRIMARY KEY (ds, shard_id, uid_int32) NOT ENFORCED
) WITH (
'table.datalake.enabled' = 'true', -- Enable Streaming-Lakehouse Unification
'table.datalake.freshness' = '10s' -- Second-level synchronization
);

INSERT INTO fluss_catalog.db.ads_uv_detail
SELECT
t1.ds,
-- ....... Intermediate fields omitted
CAST(t2.uid_int64 % N AS INT) AS shard_id, -- Shard ID, used for parallel aggregation
CAST((t2.uid_int64 / N) AS INT) AS uid_int32 -- Compressed ID, used for Bitmap
FROM `fluss_catalog`.`db`.`log_exp_ri` t1
LEFT JOIN `fluss_catalog`.`db`.`user_mapping`
/*+ OPTIONS('lookup.cache' = 'PARTIAL','lookup.partial-cache.max-rows' = '500000','lookup.partial-cache.expire-after-access' = '2min') */
FOR SYSTEM_TIME AS OF PROCTIME() AS t2
ON t1.user_id = t2.user_id;

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
