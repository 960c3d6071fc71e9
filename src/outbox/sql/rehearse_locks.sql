-- Which of these messages have a row that another session has locked: the message's own row, its record, or a record that waits
-- behind it. The settle would wait for these rows. The caller gives the locks back.
-- $1 lanes, $2 ids, $3 key hashes (NULL: releases nothing), $4 messages of a key
WITH asked AS MATERIALIZED (
    SELECT s.lane, s.id, s.key_hash FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS s (lane, id, key_hash)
), free_message AS MATERIALIZED (
    SELECT m.lane, m.id FROM asked s JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
    FOR NO KEY UPDATE OF m SKIP LOCKED
), free_record AS MATERIALIZED (
    SELECT w.lane, w.id FROM asked s JOIN outbox.waiting w ON w.lane = s.lane AND w.id = s.id
    FOR UPDATE OF w SKIP LOCKED
), behind AS MATERIALIZED (
    SELECT s.id AS head, next.lane, next.id
    FROM asked s
    CROSS JOIN LATERAL (
        SELECT b.lane, b.id, b.due_at, b.cause
        FROM outbox.waiting b
        WHERE b.lane = s.lane AND b.key_hash = s.key_hash AND NOT b.replay AND b.cause <> 'scheduled'
        ORDER BY b.id
        LIMIT $4
    ) next
    WHERE next.due_at IS NULL AND next.cause <> 'held'
), free_behind AS MATERIALIZED (
    SELECT w.lane, w.id FROM behind b JOIN outbox.waiting w ON w.lane = b.lane AND w.id = b.id
    FOR UPDATE OF w SKIP LOCKED
)
SELECT s.lane, s.id,
       EXISTS (SELECT FROM outbox.message m WHERE m.lane = s.lane AND m.id = s.id)
       AND NOT EXISTS (SELECT FROM free_message f WHERE f.lane = s.lane AND f.id = s.id) AS message,
       EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = s.lane AND w.id = s.id)
       AND NOT EXISTS (SELECT FROM free_record f WHERE f.lane = s.lane AND f.id = s.id) AS record,
       EXISTS (SELECT FROM behind b WHERE b.lane = s.lane AND b.head = s.id
                 AND NOT EXISTS (SELECT FROM free_behind f WHERE f.lane = b.lane AND f.id = b.id)) AS behind
FROM asked s
