-- Transactions that have written, on the whole server: the oldest one holds the marks of every lane back. Every role may read
-- pg_locks. `seconds` is NULL where this role may not see when a transaction began. A prepared transaction has no session.
SELECT w.pid, NULL::text AS gid, coalesce(a.usename::text, '?') AS login,
       left(coalesce(a.application_name, ''), 64) AS application, coalesce(a.datname::text, '?') AS database,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds, w.age
FROM (
    SELECT l.pid, max(age(l.transactionid)) AS age
    FROM pg_locks l
    WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.pid <> pg_backend_pid()
    GROUP BY l.pid
) w
LEFT JOIN pg_stat_activity a ON a.pid = w.pid
UNION ALL
SELECT NULL, p.gid, p.owner::text, '', p.database::text,
       extract(epoch FROM clock_timestamp() - p.prepared)::float8, age(p.transaction)
FROM pg_prepared_xacts p
ORDER BY age DESC
LIMIT 5
