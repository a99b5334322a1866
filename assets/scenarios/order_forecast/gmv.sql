-- Beyond the article: the printed statements begin with a running count that nobody fills and end with a number of orders. Here a log of orders
-- with their amounts fills that count, and from the same log comes a forecast of the day's GMV.
USE db;
CREATE TABLE order_log (
order_id BIGINT NOT NULL,
order_time TIMESTAMP(3) NOT NULL,
order_source STRING NOT NULL,
amount DECIMAL(10, 2) NOT NULL COMMENT 'paid, in the currency''s unit'
) WITH ('bucket.num' = '${BUCKET_NUM}', 'table.log.arrow.compression.type' = 'zstd');

-- What each minute added.
CREATE TEMPORARY VIEW order_minute AS
SELECT DATE_FORMAT(order_time, 'yyyyMMdd') AS ds, DATE_FORMAT(order_time, 'HHmm') AS mm, order_source, COUNT(*) AS order_cnt, SUM(amount) AS gmv
FROM order_log GROUP BY DATE_FORMAT(order_time, 'yyyyMMdd'), DATE_FORMAT(order_time, 'HHmm'), order_source;

-- The minute accumulation: all of the day up to and with each minute. Over CUMULATE with a watermark a minute would come when it is over, once;
-- so the present minute is there with its first order, moves with each further one, and a late order corrects every minute behind it.
SET 'pipeline.name' = 'order_dtm';
INSERT INTO order_dtm
SELECT ds, mm, order_source, SUM(order_cnt) OVER (PARTITION BY ds, order_source ORDER BY mm) FROM order_minute;

CREATE TABLE gmv_dtm (
ds STRING, mm STRING, order_source STRING, gmv DECIMAL(18, 2) COMMENT 'of the day, up to and with this minute',
PRIMARY KEY (ds, mm, order_source) NOT ENFORCED
) PARTITIONED BY (ds)
WITH (
'bucket.key' = 'mm,order_source', 'bucket.num' = '${BUCKET_NUM}',
'table.auto-partition.enabled' = 'true', 'table.auto-partition.time-unit' = 'day', 'table.auto-partition.key' = 'ds',
'table.auto-partition.num-precreate' = '0', 'table.auto-partition.num-retention' = '2'
);
SET 'pipeline.name' = 'gmv_dtm';
INSERT INTO gmv_dtm
SELECT ds, mm, order_source, SUM(gmv) OVER (PARTITION BY ds, order_source ORDER BY mm) FROM order_minute;

-- The baseline. A partition is one past day: the share of its GMV that had been placed by each minute, and its whole GMV.
CREATE TABLE gmv_mm_his (
channel_id STRING, mm STRING, gmv_share DOUBLE, day_gmv DECIMAL(18, 2), ds STRING,
PRIMARY KEY (channel_id, mm, ds) NOT ENFORCED
) PARTITIONED BY (ds)
WITH ('bucket.num' = '${BUCKET_NUM}', 'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '10s');

-- The forecast: of each source, after each minute.
CREATE TABLE gmv_forecast_mm (
ds STRING, mm STRING, order_source STRING, cumulative_gmv DECIMAL(18, 2), forecast_daily_gmv DECIMAL(18, 2),
PRIMARY KEY (ds, mm, order_source) NOT ENFORCED
) PARTITIONED BY (ds)
WITH (
'bucket.key' = 'mm,order_source', 'bucket.num' = '${BUCKET_NUM}',
'table.auto-partition.enabled' = 'true', 'table.auto-partition.time-unit' = 'day', 'table.auto-partition.key' = 'ds',
'table.auto-partition.num-precreate' = '0', 'table.auto-partition.num-retention' = '2',
'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '30s'
);
CREATE TEMPORARY FUNCTION predict_day_gmv AS 'assets.scenarios.order_forecast.model.predict_day_gmv' LANGUAGE PYTHON;
CREATE TEMPORARY VIEW gmv_so_far AS SELECT ds, mm, order_source, gmv, PROCTIME() AS proc_time FROM gmv_dtm;
SET 'pipeline.name' = 'gmv_forecast';
INSERT INTO gmv_forecast_mm
SELECT t1.ds, t1.mm, t1.order_source, t1.gmv, predict_day_gmv(t1.gmv, t2.gmv_share, t2.day_gmv)
FROM gmv_so_far t1
LEFT JOIN gmv_mm_his /*+ OPTIONS('scan.partitions' = 'max_pt()', 'lookup.dynamic-partition.refresh-interval' = '1 h') */
FOR SYSTEM_TIME AS OF t1.proc_time AS t2 ON t1.order_source = t2.channel_id AND t1.mm = t2.mm;
