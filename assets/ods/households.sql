-- Demographics exist for 801 of the 2,469 buying households: join from the left.
CREATE TABLE ods.households (
  household_id BIGINT NOT NULL,
  age STRING COMMENT 'Age band of the head of the household',
  income STRING COMMENT 'Income band',
  home_ownership STRING,
  marital_status STRING,
  household_size STRING COMMENT '1, 2, 3, 4 or 5+',
  household_comp STRING COMMENT 'Composition, for example 2 Adults Kids',
  kids_count STRING,
  PRIMARY KEY (household_id) NOT ENFORCED
) COMMENT 'Demographics of the households that gave them' WITH (
  'bucket.key' = 'household_id',
  'table.datalake.enabled' = 'true', 'table.datalake.freshness' = '1min',
  'asset.owner' = 'team:customer'
);
