-- Mergeable partials by minute: a window of 5, 15 or 60 minutes is a sum of these rows. Never an average of averages.
CREATE TABLE features.product_minute (
  product_id BIGINT NOT NULL,
  ds STRING NOT NULL COMMENT 'yyyy-MM-dd',
  stat_minute STRING NOT NULL COMMENT 'HH:mm',
  line_cnt BIGINT COMMENT 'Lines sold in the minute',
  quantity BIGINT COMMENT 'Units sold in the minute',
  sales_value DECIMAL(38, 2) COMMENT 'Money received in the minute',
  discount_value DECIMAL(38, 2) COMMENT 'Discounts given in the minute',
  line_value_max DECIMAL(12, 2) COMMENT 'Largest line of the minute',
  PRIMARY KEY (product_id, ds, stat_minute) NOT ENFORCED
) COMMENT 'Sales features of a product by minute' PARTITIONED BY (ds) WITH (
  'bucket.key' = 'product_id', 'bucket.num' = '2',
  'table.merge-engine' = 'aggregation',
  'fields.line_cnt.agg' = 'sum', 'fields.quantity.agg' = 'sum', 'fields.sales_value.agg' = 'sum',
  'fields.discount_value.agg' = 'sum', 'fields.line_value_max.agg' = 'max',
  'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '10s',
  'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:algorithms', 'asset.schedule' = '0 2 * * *', 'asset.freshness' = '1d'
);

SET 'pipeline.name' = 'product_minute';
INSERT INTO features.product_minute
SELECT
  product_id,
  ds,
  DATE_FORMAT(transaction_timestamp, 'HH:mm') AS stat_minute,
  COUNT(*) AS line_cnt,
  SUM(quantity) AS quantity,
  SUM(sales_value) AS sales_value,
  SUM(discount_value) AS discount_value,
  MAX(sales_value) AS line_value_max
FROM dwd.order_line
GROUP BY product_id, ds, DATE_FORMAT(transaction_timestamp, 'HH:mm');
