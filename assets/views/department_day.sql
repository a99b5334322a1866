CREATE MATERIALIZED VIEW views.department_day
COMMENT 'Lines and money by department and day'
REFRESH ASYNC EVERY(INTERVAL '5' SECOND)
PROPERTIES ('asset.partitions' = 'day(day)', 'asset.owner' = 'team:trading', 'asset.schedule' = '0 2 * * *', 'asset.freshness' = '1d')
AS
SELECT department, ds AS `day`, COUNT(*) AS lines, SUM(sales_value) AS sales_value
FROM dwd.order_line
GROUP BY department, ds;
