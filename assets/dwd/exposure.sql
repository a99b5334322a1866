-- Keyed by the event's id: a second delivery changes nothing, so it is not counted.
CREATE TABLE dwd.exposure (
  event_id BIGINT NOT NULL,
  household_id BIGINT,
  store_id BIGINT,
  product_id BIGINT,
  slot INT COMMENT 'Place in the list, from 1',
  event_time TIMESTAMP(3),
  stat_hour STRING COMMENT 'Hour of the event time, HH',
  ds STRING NOT NULL COMMENT 'Day of the event time, yyyy-MM-dd',
  PRIMARY KEY (event_id, ds) NOT ENFORCED
) COMMENT 'Product exposures, each once' PARTITIONED BY (ds) WITH (
  'bucket.key' = 'event_id', 'bucket.num' = '2',
  'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:traffic', 'asset.schedule' = '0 2 * * *', 'asset.freshness' = '1d'
);

SET 'pipeline.name' = 'exposure';
INSERT INTO dwd.exposure
SELECT event_id, household_id, store_id, product_id, slot, event_time, DATE_FORMAT(event_time, 'HH') AS stat_hour, ds
FROM ods.exposures;
