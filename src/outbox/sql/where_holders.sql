-- Who holds these lanes. A claim locks the lane's row, and the row then names its transaction. pg_locks and the application's
-- name are visible to every role. $1 lanes
SELECT DISTINCT ON (o.lane) o.lane, l.pid, left(coalesce(a.application_name, ''), 64) AS application
FROM ONLY outbox.lane o
JOIN pg_locks l ON l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.transactionid = o.xmax
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE o.lane = ANY ($1::smallint[]) AND l.pid <> pg_backend_pid()
ORDER BY o.lane
