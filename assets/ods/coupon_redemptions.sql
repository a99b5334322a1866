CREATE TABLE ods.coupon_redemptions (
  household_id BIGINT NOT NULL,
  coupon_upc BIGINT NOT NULL,
  campaign_id BIGINT NOT NULL,
  redemption_date DATE NOT NULL,
  ds STRING NOT NULL COMMENT 'redemption_date, yyyy-MM-dd'
) COMMENT 'Coupons that households redeemed' PARTITIONED BY (ds) WITH (
  'bucket.key' = 'household_id',
  'asset.partitions' = 'day(ds)', 'asset.owner' = 'team:marketing'
);
