-- Every household of a store and day is in exactly one shard, so the shards' cardinalities add up.
CREATE MATERIALIZED VIEW views.store_day_uv
COMMENT 'Unique households by store and day'
REFRESH ASYNC EVERY(INTERVAL '5' SECOND)
PROPERTIES ('asset.partitions' = 'day(day)', 'asset.owner' = 'team:customer', 'asset.schedule' = '0 2 * * *', 'asset.freshness' = '1d')
AS
SELECT store_id, stat_date AS `day`, SUM(RB_CARDINALITY(uv_bitmap)) AS unique_households
FROM dws.store_day_uv
GROUP BY store_id, stat_date;
