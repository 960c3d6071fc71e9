-- Releases the messages behind a settled message, in order. $1 lane, $2 key_hash, $3 messages of a key
-- The LIMIT counts the key's first messages, released ones included. If it skipped released messages, each settle would walk
-- over all of them.
UPDATE outbox.waiting w
SET due_at = clock_timestamp()
FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, key_hash)
CROSS JOIN LATERAL (
    SELECT b.lane, b.id
    FROM outbox.waiting b
    WHERE b.lane = s.lane AND b.key_hash = s.key_hash AND NOT b.replay AND b.cause <> 'scheduled'
    ORDER BY b.id
    LIMIT $3
) next
WHERE w.lane = next.lane AND w.id = next.id AND w.due_at IS NULL AND w.cause <> 'held'
