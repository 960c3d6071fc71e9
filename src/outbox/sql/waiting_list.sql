-- Returns the rows that fit, and the last row that was looked at. A producer's text is shown in part: see dead_list.sql.
SELECT l.message_id, l.lane, l.id AS position, l.state, l.cause, l.attempts, l.redriven, f.fits, l.due_since::text AS due_since,
       left(l.reason, 100) AS reason,
       CASE WHEN octet_length(l.last_error) > 16000 THEN left(l.last_error, 4000) || '...' ELSE l.last_error END
           AS last_error,
       coalesce(to_char(l.due_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), l.due_since::text) AS since,
       coalesce(to_char(l.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), l.due_at::text) AS next_try_at,
       CASE WHEN l.reason IS NOT NULL THEN outbox.failure_group(l.reason, m.exchange, m.routing_key, m.aggregate_type,
                                                                m.event_type, l.last_error) END AS failure_group,
       CASE WHEN octet_length(m.aggregate_type) > 4000 THEN left(m.aggregate_type, 1000) || '...'
            ELSE m.aggregate_type END AS aggregate_type,
       CASE WHEN octet_length(m.aggregate_id) > 4000 THEN left(m.aggregate_id, 1000) || '...'
            ELSE m.aggregate_id END AS aggregate_id,
       CASE WHEN octet_length(m.event_type) > 4000 THEN left(m.event_type, 1000) || '...'
            ELSE m.event_type END AS event_type,
       left(m.exchange, 256) AS exchange, left(m.routing_key, 256) AS routing_key,
       CASE WHEN f.fits AND l.key_hash IS NOT NULL AND NOT l.replay AND l.cause <> 'scheduled' THEN (
           SELECT b.message_id FROM outbox.waiting b
           WHERE b.lane = l.lane AND b.key_hash = l.key_hash AND b.id < l.id AND NOT b.replay AND b.cause <> 'scheduled'
           ORDER BY b.id DESC LIMIT 1
       ) END AS behind
FROM (
    SELECT looked.*, row_number() OVER () AS n, row_number() OVER () = (SELECT count(*) FROM looked) AS is_last,
           CASE WHEN replay THEN 'replay' WHEN cause IN ('held', 'behind', 'scheduled') THEN cause ELSE 'failing' END AS state
    FROM looked
) l
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
WHERE f.fits OR l.is_last
ORDER BY l.n
