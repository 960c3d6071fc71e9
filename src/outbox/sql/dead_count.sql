-- Counts the dead messages that a change would take, and those that fit the filter but have no message any more. The
-- conditions are those of dead_take.sql.
SELECT count(*) AS n,
       count(*) FILTER (WHERE m.id IS NULL AND moved.lane IS NULL) AS gone
FROM outbox.dead d
LEFT JOIN outbox.message m ON m.lane = d.lane AND m.id = d.id AND m.message_id = d.message_id
LEFT JOIN LATERAL (
    SELECT o.lane, o.aggregate_type, o.aggregate_id, o.event_type
    FROM generate_series(0, 63) AS every (lane)
    JOIN outbox.message o ON o.lane = every.lane::smallint AND o.id = d.id AND o.message_id = d.message_id
    WHERE m.id IS NULL
    LIMIT 1
) moved ON true
WHERE (cardinality($1::text[]) = 0 OR d.reason = ANY ($1))
  AND ($2::text IS NULL OR coalesce(m.aggregate_type, moved.aggregate_type) = $2)
  AND ($3::text IS NULL OR coalesce(m.aggregate_id, moved.aggregate_id) = $3)
  AND ($4::text IS NULL OR coalesce(m.event_type, moved.event_type) = $4)
  AND ($5::double precision IS NULL OR d.died_at <= clock_timestamp() - $5 * interval '1 second')
  AND (cardinality($6::uuid[]) = 0 OR d.message_id = ANY ($6))
