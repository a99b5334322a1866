-- Made events: the source has no clicks. `flashlake generate` shapes them by the real baskets; some come late, some come twice.
CREATE TABLE ods.page_visits (
  event_id BIGINT NOT NULL COMMENT 'Same id: the same event, delivered again',
  household_id BIGINT NOT NULL,
  store_id BIGINT NOT NULL,
  product_id BIGINT NOT NULL,
  event_type STRING NOT NULL COMMENT 'view or cart_add',
  event_time TIMESTAMP(3) NOT NULL,
  origin STRING NOT NULL COMMENT 'made:SEED; no real event has it',
  ds STRING NOT NULL COMMENT 'Day of the event time, yyyy-MM-dd'
) COMMENT 'Page visits and cart additions as received (made)' PARTITIONED BY (ds) WITH (
  'bucket.key' = 'event_id', 'bucket.num' = '2',
  'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '30s',
  'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:traffic', 'asset.freshness' = '1d'
);
