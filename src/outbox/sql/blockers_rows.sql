-- As blockers_lanes.sql, and also transactions that have written or locked one of these messages or one of its records.
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
    SELECT 'lane ' || o.lane, o.xmax FROM ONLY outbox.lane o
