-- One row per store and hour; three streams that know nothing of each other fill their own columns.
-- A basket has one store and one instant, so basket_cnt adds up over hours and stores.
CREATE TABLE dws.store_hour_wide (
  store_id BIGINT NOT NULL,
  stat_date STRING NOT NULL COMMENT 'yyyy-MM-dd',
  stat_hour STRING NOT NULL COMMENT 'HH',
  line_cnt BIGINT COMMENT 'Transaction lines',
  basket_cnt BIGINT COMMENT 'Distinct baskets',
  quantity BIGINT COMMENT 'Units sold',
  sales_value DECIMAL(38, 2) COMMENT 'Money received',
  visit_cnt BIGINT COMMENT 'Page visits (made events), each once',
  cart_cnt BIGINT COMMENT 'Cart additions (made events), each once',
  exposure_cnt BIGINT COMMENT 'Product exposures (made events), each once',
  PRIMARY KEY (store_id, stat_date, stat_hour) NOT ENFORCED
) COMMENT 'Store metrics by hour' PARTITIONED BY (stat_date) WITH (
  'bucket.key' = 'store_id', 'bucket.num' = '2',
  'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '10s',
  'asset.partitions' = 'day(stat_date)', 'asset.owner' = 'team:trading', 'asset.schedule' = '0 2 * * *', 'asset.freshness' = '1d'
);

SET 'pipeline.name' = 'store_hour_orders';
INSERT INTO dws.store_hour_wide (store_id, stat_date, stat_hour, line_cnt, basket_cnt, quantity, sales_value)
SELECT store_id, ds, stat_hour, COUNT(*), COUNT(DISTINCT basket_id), SUM(quantity), SUM(sales_value)
FROM dwd.order_line
GROUP BY store_id, ds, stat_hour;

SET 'pipeline.name' = 'store_hour_visits';
INSERT INTO dws.store_hour_wide (store_id, stat_date, stat_hour, visit_cnt, cart_cnt)
SELECT
  store_id,
  ds,
  stat_hour,
  SUM(CASE WHEN event_type = 'view' THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END),
  SUM(CASE WHEN event_type = 'cart_add' THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END)
FROM dwd.page_visit
GROUP BY store_id, ds, stat_hour;

SET 'pipeline.name' = 'store_hour_exposures';
INSERT INTO dws.store_hour_wide (store_id, stat_date, stat_hour, exposure_cnt)
SELECT store_id, ds, stat_hour, COUNT(*)
FROM dwd.exposure
GROUP BY store_id, ds, stat_hour;
