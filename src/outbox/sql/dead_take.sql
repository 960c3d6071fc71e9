-- Locks and removes up to $7 dead messages; what happens to them is the caller's.
WITH chosen AS (
    SELECT d.lane, d.id
    FROM outbox.dead d
    LEFT JOIN outbox.message m ON m.lane = d.lane AND m.id = d.id
    WHERE (cardinality($1::text[]) = 0 OR d.reason = ANY ($1))
      AND ($2::text IS NULL OR m.aggregate_type = $2)
      AND ($3::text IS NULL OR m.aggregate_id = $3)
      AND ($4::text IS NULL OR m.event_type = $4)
      AND ($5::double precision IS NULL OR d.died_at <= clock_timestamp() - $5 * interval '1 second')
      AND (cardinality($6::uuid[]) = 0 OR d.message_id = ANY ($6))
    ORDER BY d.id
    LIMIT $7
    FOR UPDATE OF d SKIP LOCKED
)
DELETE FROM outbox.dead d
USING chosen c
WHERE d.lane = c.lane AND d.id = c.id
RETURNING d.lane, d.id, d.message_id, d.replay
