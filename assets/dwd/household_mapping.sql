-- Dense ids for households, so that bitmaps over them stay small. The lookup inserts what it does not find.
CREATE TABLE dwd.household_mapping (
  household_id BIGINT NOT NULL COMMENT 'Id of the source',
  household_no BIGINT COMMENT 'Dense id, from 1',
  PRIMARY KEY (household_id) NOT ENFORCED
) COMMENT 'Household to dense id' WITH (
  'bucket.key' = 'household_id',
  'auto-increment.fields' = 'household_no',
  'asset.owner' = 'team:customer'
);

SET 'pipeline.name' = 'household_mapping';
INSERT INTO dwd.household_mapping (household_id)
SELECT t.household_id
FROM ods.transactions AS t
LEFT JOIN dwd.household_mapping /*+ OPTIONS('lookup.insert-if-not-exists' = 'true') */
  FOR SYSTEM_TIME AS OF PROCTIME() AS m ON t.household_id = m.household_id
GROUP BY t.household_id;
