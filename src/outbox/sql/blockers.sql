-- Sessions that keep this one from writing to the outbox. They hold or request a table lock that conflicts with ROW
-- EXCLUSIVE (later requests queue behind a requested lock), or their transaction has written or locked one of these rows or a
-- lane's row. Relays are left out, because they hold lanes for their work.
-- $1 lanes, $2 ids of messages
WITH holder (pid, what) AS (
    SELECT l.pid, 'table outbox.' || c.relname || ' (' || l.mode || CASE WHEN l.granted THEN ')' ELSE ', asked for)' END
    FROM pg_locks l
    JOIN pg_class c ON c.oid = l.relation
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'outbox'
    WHERE l.locktype = 'relation'
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    UNION ALL
    SELECT l.pid, 'message ' || m.id
    FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
    JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
    JOIN pg_locks l ON l.locktype = 'transactionid' AND l.granted AND l.transactionid = m.xmax
    UNION ALL
    SELECT l.pid, 'lane ' || o.lane
    FROM outbox.lane o
    JOIN pg_locks l ON l.locktype = 'transactionid' AND l.granted AND l.transactionid = o.xmax
)
SELECT h.pid, coalesce(a.usename, '?')::text AS usename, left(coalesce(a.application_name, ''), 64) AS application,
       a.state, coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS seconds,
       min(h.what) AS what, count(*) AS locks
FROM holder h
LEFT JOIN pg_stat_activity a ON a.pid = h.pid
WHERE h.pid <> pg_backend_pid() AND coalesce(a.application_name, '') NOT LIKE 'outboxd/%'
GROUP BY 1, 2, 3, 4, 5
ORDER BY seconds DESC
LIMIT 5
