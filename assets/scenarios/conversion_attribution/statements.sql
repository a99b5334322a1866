-- Scenario 1: conversion and attribution. The tables and the view are printed; what is ours is marked so.
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
; -- printed without its semicolon

-- Ours from here on. The article prints no INSERT; the view has no pay_amt, and its columns stand in another order than the table's, so the
-- INSERT names them. A visit without an order has a null key and cannot be a row of the result: it is dropped and counted (DESCRIBE JOB),
-- and db.unmatched_page_ri shows which visits these are now.
SET 'table.exec.sink.not-null-enforcer' = 'DROP';
SET 'pipeline.name' = 'attribution';
INSERT INTO `fluss_catalog`.`db`.`log_page_ord_detail_ri` (ds, user_id, first_page_time, pv, order_id, order_time, is_matched)
SELECT * FROM matched_page_ord_detail;

-- The amount, as a partial update of the same rows by a second job.
SET 'table.exec.sink.not-null-enforcer' = 'ERROR';
SET 'pipeline.name' = 'attribution_amount';
INSERT INTO `fluss_catalog`.`db`.`log_page_ord_detail_ri` (user_id, order_id, ds, pay_amt)
SELECT o.user_id, o.order_id, o.ds, o.pay_amt
FROM `fluss_catalog`.`db`.`order_ri` o
JOIN `fluss_catalog`.`db`.`log_page_ri` l
ON l.user_id = o.user_id AND l.ds = o.ds;

CREATE VIEW db.unmatched_page_ri AS
SELECT l.user_id, l.ds, l.first_page_time, l.pv
FROM db.log_page_ri l
LEFT JOIN db.order_ri o
ON l.user_id = o.user_id AND l.ds = o.ds
WHERE o.order_id IS NULL;

-- Conversion = buyers / visitors per day. Two jobs fill two columns of one row: each reads one changelog.
CREATE TABLE db.conversion_ri (
ds STRING,
visitors BIGINT COMMENT 'visiting users',
buyers BIGINT COMMENT 'users with an order at or after their first visit',
PRIMARY KEY (ds) NOT ENFORCED
) WITH ('bucket.num' = '1');

SET 'pipeline.name' = 'conversion_visitors';
INSERT INTO db.conversion_ri (ds, visitors)
SELECT ds, COUNT(*) FROM db.log_page_ri GROUP BY ds;

SET 'pipeline.name' = 'conversion_buyers';
INSERT INTO db.conversion_ri (ds, buyers)
SELECT ds, COUNT(DISTINCT user_id) FROM db.log_page_ord_detail_ri WHERE is_matched = '1' GROUP BY ds;
