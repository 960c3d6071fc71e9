-- The next waiting messages of a lane, each with whether it fits the filter. A record without a message is none: the relay
-- removes it. $1 reasons, $2 aggregate type, $3 aggregate id, $4 event type, $5 waiting for at least (s), $6 message ids,
-- $7 exchange, $8 routes for messages that name no exchange, $9 group, $10 states, $11 lane, $12 position before the first,
-- $13 rows to look at.
-- OFFSET 0: a probe of the index for each record, whatever the statistics say.
WITH looked AS MATERIALIZED (
    SELECT w.lane, w.id, w.message_id, w.key_hash, w.cause, w.replay, w.due_at, w.due_since, w.attempts, w.reason,
           left(w.last_error, 1000) AS last_error, w.destination,
           CASE WHEN w.replay THEN 'replay' WHEN w.cause IN ('held', 'behind', 'scheduled') THEN w.cause
                ELSE 'failing' END AS state
    FROM outbox.waiting w
    WHERE w.lane = $11 AND w.id > $12
    ORDER BY w.id
    LIMIT $13
)
SELECT l.id, l.message_id, l.key_hash, l.state, l.attempts, l.destination, coalesce(l.due_at <= clock_timestamp(), false) AS is_due,
       f.fits, CASE WHEN f.fits THEN l.reason END AS reason, CASE WHEN f.fits THEN l.last_error END AS last_error
FROM looked l
LEFT JOIN LATERAL (
    SELECT o.aggregate_type, o.aggregate_id, o.event_type, o.exchange, o.routing_key, o.sent_at, true AS is_there
    FROM outbox.message o WHERE o.lane = l.lane AND o.id = l.id AND o.message_id = l.message_id
      AND l.state = ANY ($10::text[]) OFFSET 0
) m ON true
CROSS JOIN LATERAL (
    SELECT coalesce(
        (cardinality($6::uuid[]) = 0 OR l.message_id = ANY ($6))
        AND l.state = ANY ($10::text[])
        AND (cardinality($1::text[]) = 0 OR l.reason = ANY ($1))
        AND ($5::double precision IS NULL OR l.due_since <= clock_timestamp() - $5 * interval '1 second')
        AND m.is_there AND (m.sent_at IS NULL OR l.replay)
        AND ($2::text IS NULL OR m.aggregate_type = $2)
        AND ($3::text IS NULL OR m.aggregate_id = $3)
        AND ($4::text IS NULL OR m.event_type = $4)
        AND ($7::text IS NULL OR coalesce(m.exchange, (
                SELECT split_part(r.rule, chr(31), 3) FROM unnest($8::text[]) WITH ORDINALITY AS r (rule, n)
                WHERE m.aggregate_type LIKE split_part(r.rule, chr(31), 1)
                  AND m.event_type LIKE split_part(r.rule, chr(31), 2)
                ORDER BY r.n LIMIT 1)) = $7)
        AND ($9::text IS NULL OR l.reason IS NOT NULL
             AND outbox.failure_group(l.reason, m.exchange, m.routing_key, m.aggregate_type, m.event_type, l.last_error) = $9),
        false) AS fits
) f
ORDER BY l.id
