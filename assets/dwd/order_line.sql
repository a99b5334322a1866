-- A line with what is known of its product and its household when it arrives.
-- A product without master data is kept, under UNKNOWN: every line counts.
CREATE TABLE dwd.order_line (
  basket_id BIGINT NOT NULL,
  product_id BIGINT NOT NULL,
  household_id BIGINT NOT NULL,
  store_id BIGINT NOT NULL,
  quantity BIGINT,
  sales_value DECIMAL(12, 2) COMMENT 'Money the store received for the line',
  discount_value DECIMAL(14, 2) COMMENT 'All discounts of the line',
  department STRING NOT NULL COMMENT 'UNKNOWN: no master data',
  product_category STRING,
  brand STRING,
  age STRING COMMENT 'NULL: the household gave no demographics',
  income STRING,
  household_size STRING,
  week INT,
  transaction_timestamp TIMESTAMP(3) NOT NULL,
  stat_hour STRING NOT NULL COMMENT 'Hour of the event time, HH',
  ds STRING NOT NULL COMMENT 'Day of the event time, yyyy-MM-dd'
) COMMENT 'Transaction lines widened with product and household' PARTITIONED BY (ds) WITH (
  'bucket.key' = 'store_id', 'bucket.num' = '2',
  'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '10s',
  'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:trading', 'asset.schedule' = '0 2 * * *', 'asset.freshness' = '1d'
);

SET 'pipeline.name' = 'order_line';
INSERT INTO dwd.order_line
SELECT
  t.basket_id,
  t.product_id,
  t.household_id,
  t.store_id,
  t.quantity,
  t.sales_value,
  CAST(t.retail_disc + t.coupon_disc + t.coupon_match_disc AS DECIMAL(14, 2)) AS discount_value,
  COALESCE(p.department, 'UNKNOWN') AS department,
  p.product_category,
  p.brand,
  h.age,
  h.income,
  h.household_size,
  t.week,
  t.transaction_timestamp,
  DATE_FORMAT(t.transaction_timestamp, 'HH') AS stat_hour,
  t.ds
FROM ods.transactions AS t
LEFT JOIN ods.products FOR SYSTEM_TIME AS OF PROCTIME() AS p ON t.product_id = p.product_id
LEFT JOIN ods.households FOR SYSTEM_TIME AS OF PROCTIME() AS h ON t.household_id = h.household_id;
