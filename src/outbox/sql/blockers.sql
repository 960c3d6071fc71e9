-- The end of blockers_lanes.sql and blockers_rows.sql, which name the rows that may be locked and their xmax.
-- The transactions hold or request a table lock that conflicts with ROW EXCLUSIVE (later requests queue behind a requested
-- lock), or they have written or locked one of the rows. Relays are left out, because they hold lanes for their work.
-- A row that several transactions have locked names them through a multixact. xmax does not tell whether it is one, so the
-- statement tries both, and asks only for a multixact that can exist: for any other the server reports an error.
-- A prepared transaction has no session, and no pid. Its own transaction id, on which it holds a lock, leads to its name.
), oldest AS MATERIALIZED (
    SELECT max(mxid_age(d.datminmxid)) AS age FROM pg_database d
), by_transaction (what, xid) AS (
    SELECT l.what, l.xmax FROM locked l WHERE l.xmax::text <> '0'
    UNION ALL
    SELECT l.what, m.xid
    FROM locked l
    CROSS JOIN LATERAL pg_get_multixact_members(
        CASE WHEN l.xmax::text <> '0' AND mxid_age(l.xmax) BETWEEN 1 AND (SELECT o.age FROM oldest o) THEN l.xmax END
    ) m
), prepared (vxid, gid, owner, prepared) AS (
    SELECT l.virtualtransaction, p.gid, p.owner, p.prepared
    FROM pg_locks l
    JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
    WHERE l.locktype = 'transactionid' AND l.granted AND l.pid IS NULL
), holder (pid, vxid, what) AS (
    SELECT l.pid, l.virtualtransaction,
           'table outbox.' || c.relname || ' (' || l.mode || CASE WHEN l.granted THEN ')' ELSE ', asked for)' END
    FROM pg_locks l
    JOIN pg_class c ON c.oid = l.relation
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'outbox'
    WHERE l.locktype = 'relation'
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    UNION ALL
    SELECT l.pid, l.virtualtransaction, t.what
    FROM by_transaction t
    JOIN pg_locks l ON l.locktype = 'transactionid' AND l.granted AND l.transactionid = t.xid
)
SELECT h.pid, p.gid, coalesce(a.usename, p.owner, '?')::text AS usename,
       left(coalesce(a.application_name, ''), 64) AS application, a.state,
       coalesce(extract(epoch FROM statement_timestamp() - coalesce(a.xact_start, p.prepared)), 0)::float8 AS seconds,
       min(h.what) AS what, count(*) AS locks
FROM holder h
LEFT JOIN pg_stat_activity a ON a.pid = h.pid
LEFT JOIN prepared p ON h.pid IS NULL AND p.vxid = h.vxid
WHERE (h.pid <> pg_backend_pid() OR h.pid IS NULL AND p.gid IS NOT NULL)
  AND coalesce(a.application_name, '') NOT LIKE 'outboxd/%'
GROUP BY 1, 2, 3, 4, 5, 6
ORDER BY seconds DESC
LIMIT 5
