-- How many messages wait in each state, among the first records. $1 rows
SELECT CASE WHEN w.replay THEN 'replay' WHEN w.cause IN ('held', 'behind', 'scheduled') THEN w.cause
            ELSE 'failing' END AS state, count(*) AS n
FROM (SELECT w.replay, w.cause FROM outbox.waiting w LIMIT $1) w
GROUP BY 1
ORDER BY 1
