-- Locks and removes the records of up to $10 dead messages, and returns where each message is now; the caller redrives or
-- discards them. If a message is no longer where it was filed (somebody corrected its key), the statement looks in every
-- lane. If a message no longer exists, its record stays, unless $11 is true. $12 died at, $13 lane and $14 position of the
-- last record of the step before; for the first step NULL, -1, 0. So no step reads again what an earlier one has read.
-- OFFSET 0: a join of whole tables would begin at their first row in each step.
-- `taken`: a trigger can keep a record, and its message must then not be redriven or discarded.
WITH chosen AS (
    SELECT d.died_at, d.lane, d.id, d.message_id, d.replay, d.redriven, coalesce(m.lane, moved.lane) AS now_in
    FROM outbox.dead d
    LEFT JOIN LATERAL (
        SELECT o.lane, o.id, o.aggregate_type, o.aggregate_id, o.event_type, o.exchange, o.routing_key
        FROM outbox.message o
        WHERE o.lane = d.lane AND o.id = d.id AND o.message_id = d.message_id OFFSET 0
    ) m ON true
    LEFT JOIN LATERAL (
        SELECT o.lane, o.aggregate_type, o.aggregate_id, o.event_type, o.exchange, o.routing_key
        FROM generate_series(0, 63) AS every (lane)
        JOIN outbox.message o ON o.lane = every.lane::smallint AND o.id = d.id AND o.message_id = d.message_id
        WHERE m.id IS NULL
        LIMIT 1
    ) moved ON true
    CROSS JOIN LATERAL (
        SELECT coalesce(m.aggregate_type, moved.aggregate_type) AS aggregate_type,
               coalesce(m.aggregate_id, moved.aggregate_id) AS aggregate_id, coalesce(m.event_type, moved.event_type) AS event_type,
               coalesce(m.exchange, moved.exchange) AS exchange, coalesce(m.routing_key, moved.routing_key) AS routing_key
    ) f
    WHERE (cardinality($1::text[]) = 0 OR d.reason = ANY ($1))
      AND ($2::text IS NULL OR f.aggregate_type = $2)
      AND ($3::text IS NULL OR f.aggregate_id = $3)
      AND ($4::text IS NULL OR f.event_type = $4)
      AND ($5::double precision IS NULL OR d.died_at <= clock_timestamp() - $5 * interval '1 second')
      AND (cardinality($6::uuid[]) = 0 OR d.message_id = ANY ($6))
      AND ($7::text IS NULL OR coalesce(f.exchange, (
               SELECT split_part(r.rule, chr(31), 3) FROM unnest($8::text[]) WITH ORDINALITY AS r (rule, n)
               WHERE f.aggregate_type LIKE split_part(r.rule, chr(31), 1)
                 AND f.event_type LIKE split_part(r.rule, chr(31), 2)
               ORDER BY r.n LIMIT 1)) = $7)
      AND ($9::text IS NULL OR outbox.failure_group(d.reason, f.exchange, f.routing_key, f.aggregate_type,
                                                    f.event_type, d.last_error) = $9)
      AND ($11::boolean OR coalesce(m.lane, moved.lane) IS NOT NULL)
      AND (d.died_at, d.lane, d.id) > (coalesce($12::timestamptz, '-infinity'), $13::smallint, $14::bigint)
    ORDER BY d.died_at, d.lane, d.id
    LIMIT $10
    FOR UPDATE OF d SKIP LOCKED
), taken AS (
    DELETE FROM outbox.dead d
    USING chosen c
    WHERE d.lane = c.lane AND d.id = c.id
    RETURNING d.lane, d.id
)
SELECT c.lane, c.id, c.message_id, c.replay, c.redriven, c.now_in, t.id IS NOT NULL AS taken,
       CASE WHEN isfinite(c.died_at) THEN c.died_at END AS died_at
FROM chosen c
LEFT JOIN taken t ON t.lane = c.lane AND t.id = c.id
ORDER BY c.died_at, c.lane, c.id
