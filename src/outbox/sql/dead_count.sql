-- How many dead messages a change would take, how many of them have no message any more, and how many a redrive would not
-- publish, because they were marked as sent since they died. As dead_take.sql and redrive.sql.
SELECT count(*) AS n,
       count(*) FILTER (WHERE m.id IS NULL AND moved.lane IS NULL) AS gone,
       count(*) FILTER (WHERE coalesce(m.sent_at, moved.sent_at) IS NOT NULL AND NOT d.replay) AS sent
FROM outbox.dead d
LEFT JOIN outbox.message m ON m.lane = d.lane AND m.id = d.id AND m.message_id = d.message_id
LEFT JOIN LATERAL (
    SELECT o.lane, o.sent_at, o.aggregate_type, o.aggregate_id, o.event_type, o.exchange, o.routing_key
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
