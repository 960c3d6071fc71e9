-- Releases the messages behind a settled message, in order. $1 lane, $2 key_hash, $3 messages of a key
-- The LIMIT counts the key's first messages, released ones included. If it skipped released messages, each settle would walk
-- over all of them.
-- Returns how many had to be released, and how many were: a trigger can keep the records as they were.
WITH behind AS (
    SELECT next.lane, next.id
    FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, key_hash)
    CROSS JOIN LATERAL (
        SELECT b.lane, b.id, b.due_at, b.cause
        FROM outbox.waiting b
        WHERE b.lane = s.lane AND b.key_hash = s.key_hash AND NOT b.replay AND b.cause <> 'scheduled'
        ORDER BY b.id
        LIMIT $3
    ) next
    WHERE next.due_at IS NULL AND next.cause <> 'held'
), released AS (
    UPDATE outbox.waiting w
    SET due_at = clock_timestamp()
    FROM behind b
    WHERE w.lane = b.lane AND w.id = b.id AND w.due_at IS NULL AND w.cause <> 'held'
    RETURNING w.due_at IS NOT NULL AS written
)
SELECT (SELECT count(*) FROM behind) AS chosen, (SELECT count(*) FROM released WHERE written) AS written
