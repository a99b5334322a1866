-- Keyed by the event's id: a second delivery changes nothing, so it is not counted.
CREATE TABLE dwd.page_visit (
  event_id BIGINT NOT NULL,
  household_id BIGINT,
  store_id BIGINT,
  product_id BIGINT,
  event_type STRING COMMENT 'view or cart_add',
  event_time TIMESTAMP(3),
  stat_hour STRING COMMENT 'Hour of the event time, HH',
  ds STRING NOT NULL COMMENT 'Day of the event time, yyyy-MM-dd',
  PRIMARY KEY (event_id, ds) NOT ENFORCED
) COMMENT 'Page visits and cart additions, each once' PARTITIONED BY (ds) WITH (
  'bucket.key' = 'event_id', 'bucket.num' = '2',
  'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:traffic', 'asset.schedule' = '0 2 * * *', 'asset.freshness' = '1d'
);

SET 'pipeline.name' = 'page_visit';
INSERT INTO dwd.page_visit
SELECT event_id, household_id, store_id, product_id, event_type, event_time, DATE_FORMAT(event_time, 'HH') AS stat_hour, ds
FROM ods.page_visits;
