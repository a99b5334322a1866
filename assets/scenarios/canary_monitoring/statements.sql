-- Scenario 4: canary monitoring. The article's columns have no names: here col1 is the page, col2 the client, col3 the event, col4 the city, and
-- the elided ones are written out so that there are 95. The catalog `fluss-ali-log` of the second statement is left out, as all catalogs are.
CREATE TABLE `fluss_catalog`.`db`.`log_page_ri`
(
`col1` STRING,
`col2` STRING,
`col3` STRING,
`col4` STRING
, `col5` STRING COMMENT 'minute of the event, HHmm', `col6` BIGINT COMMENT 'duration in ms', `col7` BIGINT COMMENT '1: failed, 0: not',
`col8` STRING, `col9` STRING, `col10` STRING, `col11` STRING, `col12` STRING, `col13` STRING, `col14` STRING, `col15` STRING,
`col16` STRING, `col17` STRING, `col18` STRING, `col19` STRING, `col20` STRING, `col21` STRING, `col22` STRING, `col23` STRING,
`col24` STRING, `col25` STRING, `col26` STRING, `col27` STRING, `col28` STRING, `col29` STRING, `col30` STRING, `col31` STRING,
`col32` STRING, `col33` STRING, `col34` STRING, `col35` STRING, `col36` STRING, `col37` STRING, `col38` STRING, `col39` STRING,
`col40` STRING, `col41` STRING, `col42` STRING, `col43` STRING, `col44` STRING, `col45` STRING, `col46` STRING, `col47` STRING,
`col48` STRING, `col49` STRING, `col50` STRING, `col51` STRING, `col52` STRING, `col53` STRING, `col54` STRING, `col55` STRING,
`col56` STRING, `col57` STRING, `col58` STRING, `col59` STRING, `col60` STRING, `col61` STRING, `col62` STRING, `col63` STRING,
`col64` STRING, `col65` STRING, `col66` STRING, `col67` STRING, `col68` STRING, `col69` STRING, `col70` STRING, `col71` STRING,
`col72` STRING, `col73` STRING, `col74` STRING, `col75` STRING, `col76` STRING, `col77` STRING, `col78` STRING, `col79` STRING,
`col80` STRING, `col81` STRING, `col82` STRING, `col83` STRING, `col84` STRING, `col85` STRING, `col86` STRING, `col87` STRING,
`col88` STRING, `col89` STRING, `col90` STRING, `col91` STRING, `col92` STRING, `col93` STRING,
args STRING COMMENT 'key=value,key=value,...'
,ds STRING
)
COMMENT 'Page View Log Stream'
PARTITIONED BY (ds) -- Partition key defined above
WITH (
'bucket.num' = '${BUCKET_NUM}',
'table.auto-partition.enabled' = 'true',
'table.auto-partition.time-unit' = 'day',
'table.auto-partition.key' = 'ds',
'table.auto-partition.num-precreate' = '0',
'table.auto-partition.num-retention' = '1',
'table.log.ttl' = '${LOG_TTL}',
'table.replication.factor'='${REPLICATION_FACTOR}',
'table.log.arrow.compression.type' = 'zstd',
'table.datalake.enabled' = 'true', -- Enable Streaming-Lakehouse Unification
'table.datalake.freshness' = '3min' -- Control lake table data freshness
)
;


-- Ours: the article prints no DDL for what it writes. 28 columns and the day of the canary's rows.
CREATE TABLE db.ads_gray_monitoring_ri (
col1 STRING, col2 STRING, col3 STRING, col4 STRING,
col5 STRING, col6 BIGINT, col7 BIGINT,
col8 STRING, col9 STRING, col10 STRING, col11 STRING, col12 STRING, col13 STRING, col14 STRING, col15 STRING, col16 STRING, col17 STRING,
col18 STRING, col19 STRING, col20 STRING, col21 STRING, col22 STRING, col23 STRING, col24 STRING, col25 STRING, col26 STRING, col27 STRING, col28 STRING,
ds STRING
) WITH ('bucket.num' = '${BUCKET_NUM}');

-- Reads 30 of 95 columns: the 29 selected and args.
SET 'pipeline.name' = 'gray_monitoring';
INSERT INTO `fluss_catalog`.`db`.ads_gray_monitoring_ri /*+ OPTIONS('client.writer.enable-idempotence'='false') */
SELECT
col1,
col2,
col3,
col4,
col5, col6, col7, col8, col9, col10, col11, col12, col13, col14, col15, col16, col17, col18, col19, col20, col21, col22, col23, col24, col25, col26, col27, col28,
ds
FROM `fluss-ali-log`.`db`.`log_page_ri`
WHERE KEYVALUE(`args`, ',', '=', 'release_type') = 'grey' -- Canary release flag
;


-- The print ends in the middle of the cube statement, before FROM. Completed: per minute, over every combination of page, client, event and
-- city; a rolled-up column is 'ALL', because a key has no nulls,
-- and gid says which columns are rolled up.
CREATE TABLE db.ads_gray_monitoring_permm_ri (
ds STRING, mm STRING, gid BIGINT, col1 STRING, col2 STRING, col3 STRING, col4 STRING,
pv BIGINT, failed BIGINT, cost_ms BIGINT,
PRIMARY KEY (ds, mm, gid, col1, col2, col3, col4) NOT ENFORCED
) WITH ('bucket.num' = '${BUCKET_NUM}');

SET 'pipeline.name' = 'gray_cube';
INSERT INTO `fluss_catalog`.`db`.ads_gray_monitoring_permm_ri /*+ OPTIONS('client.writer.enable-idempotence'='false') */
SELECT
ds,
col5 AS mm,
GROUPING_ID(ds, col5, col1, col2, col3, col4) AS gid,
COALESCE(col1, 'ALL') AS col1, COALESCE(col2, 'ALL') AS col2, COALESCE(col3, 'ALL') AS col3, COALESCE(col4, 'ALL') AS col4,
count(*) AS pv,
SUM(col7) AS failed,
SUM(col6) AS cost_ms
FROM db.ads_gray_monitoring_ri
GROUP BY ds, col5, CUBE (col1, col2, col3, col4);

-- The baseline, ours: the same cube over everything that is not canary traffic.
CREATE TABLE db.ads_base_monitoring_permm_ri (
ds STRING, mm STRING, gid BIGINT, col1 STRING, col2 STRING, col3 STRING, col4 STRING,
pv BIGINT, failed BIGINT, cost_ms BIGINT,
PRIMARY KEY (ds, mm, gid, col1, col2, col3, col4) NOT ENFORCED
) WITH ('bucket.num' = '${BUCKET_NUM}');

SET 'pipeline.name' = 'base_cube';
INSERT INTO db.ads_base_monitoring_permm_ri
SELECT ds, col5 AS mm, GROUPING_ID(ds, col5, col1, col2, col3, col4) AS gid, COALESCE(col1, 'ALL') AS col1, COALESCE(col2, 'ALL') AS col2, COALESCE(col3, 'ALL') AS col3, COALESCE(col4, 'ALL') AS col4, COUNT(*) AS pv, SUM(col7) AS failed, SUM(col6) AS cost_ms
FROM db.log_page_ri
WHERE KEYVALUE(args, ',', '=', 'release_type') <> 'grey'
GROUP BY ds, col5, CUBE (col1, col2, col3, col4);

-- The alert, ours: the canary of a minute fails more often than the baseline of the same minute and cell. Two-proportion z-test with pooled
-- variance, one-sided: with p = (f1 + f0) / (n1 + n0), z = (f1/n1 - f0/n0) / sqrt(p (1 - p) (1/n1 + 1/n0)). An alert stands while z >= 6, at least
-- 30 canary rows were seen, and the canary's rate is at least two points above the baseline's. z >= 6 comes by chance in one of 10^9 cells.
CREATE TABLE db.gray_alert_ri (
ds STRING, mm STRING, gid BIGINT, col1 STRING, col2 STRING, col3 STRING, col4 STRING,
canary_pv BIGINT, canary_failed BIGINT, base_pv BIGINT, base_failed BIGINT,
PRIMARY KEY (ds, mm, gid, col1, col2, col3, col4) NOT ENFORCED
) WITH ('bucket.num' = '${BUCKET_NUM}');

SET 'pipeline.name' = 'gray_alert';
INSERT INTO db.gray_alert_ri
SELECT c.ds, c.mm, c.gid, c.col1, c.col2, c.col3, c.col4, c.pv, c.failed, b.pv, b.failed
FROM db.ads_gray_monitoring_permm_ri c
JOIN db.ads_base_monitoring_permm_ri b
ON c.ds = b.ds AND c.mm = b.mm AND c.gid = b.gid AND c.col1 = b.col1 AND c.col2 = b.col2 AND c.col3 = b.col3 AND c.col4 = b.col4
WHERE c.pv >= 30
AND CAST(c.failed AS DOUBLE) / c.pv - CAST(b.failed AS DOUBLE) / b.pv >= 0.02
AND CAST(c.failed AS DOUBLE) / c.pv - CAST(b.failed AS DOUBLE) / b.pv >= 6 * SQRT(
CAST(c.failed + b.failed AS DOUBLE) / (c.pv + b.pv) * (1 - CAST(c.failed + b.failed AS DOUBLE) / (c.pv + b.pv))
* (1 / CAST(c.pv AS DOUBLE) + 1 / CAST(b.pv AS DOUBLE)));
