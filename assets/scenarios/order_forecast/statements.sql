-- Scenario 3: order forecast. The five statements are printed; what is ours is marked so.
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


-- Ours: the baseline, of which the article prints only the name. A tiered table: it lives in the lake, and a lookup is answered by the store's
-- side of it. A partition is one past day; minute_ratio_feat holds, per minute, the share of the day's orders placed by then.
CREATE TABLE db.order_mm_his_str (
channel_id STRING,
minute_ratio_feat STRING COMMENT 'HHmm=share,HHmm=share,... for each minute of the day',
ds STRING,
PRIMARY KEY (channel_id, ds) NOT ENFORCED
) PARTITIONED BY (ds)
WITH ('bucket.num' = '${BUCKET_NUM}', 'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '10s');

-- Looked up in [functions] of flashlake.toml: assets.scenarios.order_forecast.model.predict_day_orders, which forecasts a number of orders.
CREATE TEMPORARY FUNCTION predict_hour_gmv AS 'com.example.flink.udf.FutureHourlyForecastUDF';


CREATE TEMPORARY VIEW trd_item_order AS
SELECT
ds,
mm,
order_source,
order_cnt,
PROCTIME() AS proc_time
FROM `fluss_catalog`.`db`.`order_dtm`;


-- order_dtm is a changelog: its rows are corrected with every order. What an old row found in the baseline does not matter, because each row of
-- the result is replaced by its key. Flink asks for this setting too.
SET 'table.optimizer.non-deterministic-update.strategy' = 'IGNORE';
SET 'pipeline.name' = 'forecast';
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

