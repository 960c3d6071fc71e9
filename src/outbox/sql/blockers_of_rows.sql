-- As blockers.sql, and also transactions that have written or locked one of these messages or one of its records.
-- $1 lanes, $2 ids of messages
WITH asked AS MATERIALIZED (
    SELECT s.lane, s.id FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
), locked (what, xmax) AS MATERIALIZED (
    SELECT 'message ' || m.id, m.xmax FROM asked s JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
    UNION ALL
    SELECT 'the record of message ' || w.id || ' in outbox.waiting', w.xmax
    FROM asked s JOIN outbox.waiting w ON w.lane = s.lane AND w.id = s.id
    UNION ALL
    SELECT 'the record of message ' || b.id || ' in outbox.waiting', b.xmax
    FROM asked s
    JOIN outbox.waiting w ON w.lane = s.lane AND w.id = s.id
    CROSS JOIN LATERAL (
        SELECT b.id, b.xmax FROM outbox.waiting b
        WHERE b.lane = w.lane AND b.key_hash = w.key_hash AND NOT b.replay AND b.cause <> 'scheduled'
        ORDER BY b.id
        LIMIT 100
    ) b
    UNION ALL
    SELECT 'the record of message ' || d.id || ' in outbox.dead', d.xmax
    FROM asked s JOIN outbox.dead d ON d.lane = s.lane AND d.id = s.id
    UNION ALL
    SELECT 'lane ' || o.lane, o.xmax FROM outbox.lane o
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
