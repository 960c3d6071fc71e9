-- The end of blockers_lanes.sql and blockers_rows.sql, which name the rows that may be locked and their xmax.
-- The transactions hold or request a table lock that conflicts with ROW EXCLUSIVE (later requests queue behind a requested
-- lock), or they have written or locked one of the rows. Relays are left out, because they hold lanes for their work,
-- unless they have done so for a minute: a session that a relay gave up can wait in its COMMIT for a standby.
-- A row that several transactions have locked names them through a multixact. xmax does not tell whether it is one, so the
-- statement tries both, and asks only for a multixact that can exist: for any other the server reports an error.
-- A prepared transaction has no session, and no pid. Its own transaction id, on which it holds a lock, leads to its name.
-- A lock that was taken inside a savepoint names the subtransaction. When the savepoint is released, the subtransaction
-- stays in progress, and no lock leads from it to its session. So each transaction of this database that is not younger may be
-- the one. pg_xact_status() refuses a transaction id that is still to come, and age() tells which ones are.
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
), transaction_lock (pid, vxid, xid) AS MATERIALIZED (
    SELECT l.pid, l.virtualtransaction, l.transactionid
    FROM pg_locks l
    WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
), now (xid) AS MATERIALIZED (
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint
), released (what, xid) AS MATERIALIZED (
    SELECT t.what, t.xid
    FROM by_transaction t
    CROSS JOIN now n
    WHERE NOT EXISTS (SELECT FROM transaction_lock l WHERE l.xid = t.xid)
      AND CASE WHEN age(t.xid) BETWEEN 1 AND 2000000000
               -- The full transaction id is the one nearest to the present.
               THEN pg_xact_status((n.xid + ((t.xid::text::bigint - n.xid) & 4294967295)
                                    - CASE WHEN ((t.xid::text::bigint - n.xid) & 4294967295) > 2147483647
                                           THEN 4294967296 ELSE 0 END)::text::xid8) = 'in progress' END
), prepared (vxid, gid, owner, prepared, database) AS (
    SELECT l.vxid, p.gid, p.owner, p.prepared, p.database
    FROM transaction_lock l
    JOIN pg_prepared_xacts p ON p.transaction = l.xid
    WHERE l.pid IS NULL
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
    SELECT l.pid, l.vxid, t.what FROM by_transaction t JOIN transaction_lock l ON l.xid = t.xid
    UNION ALL
    SELECT l.pid, l.vxid, r.what || ' (or another of the open transactions: the lock was taken in a released savepoint)'
    FROM released r
    JOIN transaction_lock l ON age(l.xid) >= age(r.xid)
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN prepared p ON l.pid IS NULL AND p.vxid = l.vxid
    WHERE coalesce(a.datname, p.database) = current_database()
)
SELECT h.pid, p.gid, coalesce(a.usename, p.owner, '?')::text AS usename,
       left(coalesce(a.application_name, ''), 64) AS application, a.state,
       coalesce(extract(epoch FROM statement_timestamp() - coalesce(a.xact_start, p.prepared)), 0)::float8 AS seconds,
       min(h.what) AS what
FROM holder h
LEFT JOIN pg_stat_activity a ON a.pid = h.pid
LEFT JOIN prepared p ON h.pid IS NULL AND p.vxid = h.vxid
WHERE (h.pid <> pg_backend_pid() OR h.pid IS NULL AND p.gid IS NOT NULL)
  AND (coalesce(a.application_name, '') NOT LIKE 'outboxd/%'
       OR a.xact_start < statement_timestamp() - interval '1 minute')
GROUP BY 1, 2, 3, 4, 5, 6
ORDER BY seconds DESC
LIMIT 5
