-- Made events, see page_visits.sql: a product shown to a household in a list or a banner.
CREATE TABLE ods.exposures (
  event_id BIGINT NOT NULL COMMENT 'Same id: the same event, delivered again',
  household_id BIGINT NOT NULL,
  store_id BIGINT NOT NULL,
  product_id BIGINT NOT NULL,
  slot INT NOT NULL COMMENT 'Place in the list, from 1',
  event_time TIMESTAMP(3) NOT NULL,
  origin STRING NOT NULL COMMENT 'made:SEED; no real event has it',
  ds STRING NOT NULL COMMENT 'Day of the event time, yyyy-MM-dd'
) COMMENT 'Product exposures as received (made)' PARTITIONED BY (ds) WITH (
  'bucket.key' = 'event_id', 'bucket.num' = '2',
  'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '30s',
  'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:traffic', 'asset.freshness' = '1d'
);
