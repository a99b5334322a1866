-- Scenario 2: one wide table, filled by independent streams. The print has no database (hence USE) and two of the five streams.
USE db;

-- The five logs, ours: the article prints the INSERTs that read two of them.
CREATE TABLE exposure_log (shop_id BIGINT, stat_date STRING, stat_hour STRING, exp_cnt BIGINT);
CREATE TABLE page_log (shop_id BIGINT, stat_date STRING, stat_hour STRING, page_cnt BIGINT);
CREATE TABLE click_log (shop_id BIGINT, stat_date STRING, stat_hour STRING, click_cnt BIGINT);
CREATE TABLE cart_log (shop_id BIGINT, stat_date STRING, stat_hour STRING, cart_cnt BIGINT);
CREATE TABLE order_log (shop_id BIGINT, stat_date STRING, stat_hour STRING, order_cnt BIGINT);
-- The log of the sixth stream exists from the beginning; its column and its job come in the middle of the run (sixth_stream.sql).
CREATE TABLE payment_log (shop_id BIGINT, stat_date STRING, stat_hour STRING, pay_amt BIGINT);

CREATE TABLE shop_stat_wide (
shop_id BIGINT NOT NULL,
stat_date STRING NOT NULL,
stat_hour STRING NOT NULL,
exp_cnt BIGINT, -- Exposure Count
page_cnt BIGINT, -- Page View Count
PRIMARY KEY (shop_id, stat_date, stat_hour) NOT ENFORCED
) WITH (
'bucket.num' = '${BUCKET_NUM}',
'bucket.key' = 'shop_id'
);

-- Three more columns: the printed table has those of two streams.
ALTER TABLE shop_stat_wide ADD (click_cnt BIGINT, cart_cnt BIGINT, order_cnt BIGINT);

SET 'pipeline.name' = 'wide_exposures';
INSERT INTO shop_stat_wide (shop_id, stat_date, stat_hour, exp_cnt)
SELECT
shop_id,
stat_date,
stat_hour,
SUM(exp_cnt) AS exp_cnt
FROM exposure_log
GROUP BY shop_id, stat_date, stat_hour;

SET 'pipeline.name' = 'wide_visits';
INSERT INTO shop_stat_wide (shop_id, stat_date, stat_hour, page_cnt)
SELECT
shop_id,
stat_date,
stat_hour,
SUM(page_cnt) AS page_cnt
FROM page_log
GROUP BY shop_id, stat_date, stat_hour;

SET 'pipeline.name' = 'wide_clicks';
INSERT INTO shop_stat_wide (shop_id, stat_date, stat_hour, click_cnt)
SELECT shop_id, stat_date, stat_hour, SUM(click_cnt) FROM click_log GROUP BY shop_id, stat_date, stat_hour;

SET 'pipeline.name' = 'wide_carts';
INSERT INTO shop_stat_wide (shop_id, stat_date, stat_hour, cart_cnt)
SELECT shop_id, stat_date, stat_hour, SUM(cart_cnt) FROM cart_log GROUP BY shop_id, stat_date, stat_hour;

SET 'pipeline.name' = 'wide_orders';
INSERT INTO shop_stat_wide (shop_id, stat_date, stat_hour, order_cnt)
SELECT shop_id, stat_date, stat_hour, SUM(order_cnt) FROM order_log GROUP BY shop_id, stat_date, stat_hour;
