-- Product master data; a change of a product is an upsert.
CREATE TABLE ods.products (
  product_id BIGINT NOT NULL,
  manufacturer_id BIGINT,
  department STRING COMMENT 'For example GROCERY, PRODUCE, MEAT',
  brand STRING COMMENT 'National or Private',
  product_category STRING,
  product_type STRING,
  package_size STRING,
  PRIMARY KEY (product_id) NOT ENFORCED
) COMMENT 'Products: the dimension of every line' WITH (
  'bucket.key' = 'product_id', 'bucket.num' = '2',
  'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '1min',
  'asset.owner' = 'team:catalog'
);
