-- Executed while the five jobs of statements.sql run: a new column, and the stream that fills it. Nothing is stopped.
USE db;
ALTER TABLE shop_stat_wide ADD COLUMN gmv BIGINT COMMENT 'paid amount, cents';
SET 'pipeline.name' = 'wide_payments';
INSERT INTO shop_stat_wide (shop_id, stat_date, stat_hour, gmv)
SELECT shop_id, stat_date, stat_hour, SUM(pay_amt) FROM payment_log GROUP BY shop_id, stat_date, stat_hour;
