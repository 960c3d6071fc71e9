-- What the outbox knows of some messages: one snapshot, so that a settle is seen as a whole or not at all.
-- The texts that decide the route are read as the relay reads them (read.sql). $1 lanes, $2 ids
SELECT m.lane, m.id, m.message_id, m.body_size, coalesce(m.headers_size, 0) AS headers_size,
       CASE WHEN octet_length(t.aggregate_type) <= 131072 THEN t.aggregate_type ELSE left(t.aggregate_type, 131073) END
           AS aggregate_type,
       CASE WHEN octet_length(t.aggregate_id) <= 131072 THEN t.aggregate_id ELSE left(t.aggregate_id, 131073) END
           AS aggregate_id,
       CASE WHEN octet_length(t.event_type) <= 255 THEN t.event_type ELSE left(t.event_type, 256) END AS event_type,
       CASE WHEN octet_length(t.content_type) <= 255 THEN t.content_type ELSE left(t.content_type, 256) END AS content_type,
       CASE WHEN t.headers_size <= 131072 THEN t.headers::text END AS headers,
       left(t.exchange, 256) AS exchange, left(t.routing_key, 256) AS routing_key,
       CASE WHEN isfinite(m.created_at) THEN (extract(epoch FROM m.created_at) * 1000000)::bigint
            WHEN m.created_at > statement_timestamp() THEN 9223372036854775807
            ELSE (-9223372036854775808)::bigint END AS created_at_us,
       coalesce(to_char(m.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), m.created_at::text) AS created_at,
       coalesce(to_char(m.available_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), m.available_at::text)
           AS available_at,
       coalesce(m.available_at > statement_timestamp(), false) AS is_early,
       coalesce(to_char(m.sent_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), m.sent_at::text) AS sent_at,
       m.id <= coalesce(l.low_water, 0) AS is_below,
       -- The schema requires these values; the relay gives up a message without one.
       CASE WHEN t.id IS NOT NULL THEN (
           SELECT r.name || ' is NULL'
           FROM (VALUES (1, 'created_at', m.created_at IS NULL), (2, 'message_id', m.message_id IS NULL),
                        (3, 'aggregate_type', t.aggregate_type IS NULL), (4, 'event_type', t.event_type IS NULL),
                        (5, 'content_type', t.content_type IS NULL),
                        (6, 'payload', m.payload IS NULL AND m.binary_payload IS NULL)) AS r (n, name, missing)
           WHERE r.missing ORDER BY r.n LIMIT 1
       ) END AS missing,
       w.cause, coalesce(w.replay, d.replay, false) AS replay, left(coalesce(w.reason, d.reason), 100) AS reason,
       coalesce(w.attempts, d.attempts, 0) AS attempts,
       CASE WHEN octet_length(coalesce(w.last_error, d.last_error)) > 16000
            THEN left(coalesce(w.last_error, d.last_error), 4000) || '...'
            ELSE coalesce(w.last_error, d.last_error) END AS last_error,
       coalesce(to_char(w.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), w.due_at::text) AS due_at,
       extract(epoch FROM CASE WHEN isfinite(w.due_at) THEN w.due_at - statement_timestamp() END)::float8 AS due_in,
       coalesce(to_char(w.due_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), w.due_since::text) AS due_since,
       w.destination, w.failed_probes,
       coalesce(to_char(d.died_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), d.died_at::text) AS died_at,
       d.id IS NOT NULL AS is_dead,
       ahead.id AS ahead_id, ahead.message_id AS ahead_message_id,
       head.id AS head_id, head.message_id AS head_message_id, head.cause AS head_cause,
       left(head.reason, 100) AS head_reason,
       coalesce(to_char(head.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), head.due_at::text) AS head_due_at
FROM unnest($1::smallint[], $2::bigint[]) WITH ORDINALITY AS s (lane, id, n)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
LEFT JOIN ONLY outbox.lane l ON l.lane = m.lane
LEFT JOIN outbox.waiting w ON w.lane = m.lane AND w.id = m.id AND w.message_id = m.message_id
LEFT JOIN outbox.dead d ON d.lane = m.lane AND d.id = m.id AND d.message_id = m.message_id
-- The texts of an unreadable message would fail the whole statement, so they are left out.
LEFT JOIN outbox.message t ON t.lane = m.lane AND t.id = m.id AND coalesce(w.reason, d.reason, '') <> 'unreadable'
-- What holds the message's key back: the nearest before it, and the first.
LEFT JOIN LATERAL (
    SELECT b.id, b.message_id FROM outbox.waiting b
    WHERE b.lane = m.lane AND b.key_hash = outbox.key_hash(t.aggregate_type, t.aggregate_id) AND b.id < m.id
      AND NOT b.replay AND b.cause <> 'scheduled' AND m.sent_at IS NULL
    ORDER BY b.id DESC LIMIT 1
) ahead ON true
LEFT JOIN LATERAL (
    SELECT b.id, b.message_id, b.cause, b.reason, b.due_at FROM outbox.waiting b
    WHERE b.lane = m.lane AND b.key_hash = outbox.key_hash(t.aggregate_type, t.aggregate_id) AND b.id < m.id
      AND NOT b.replay AND b.cause <> 'scheduled' AND m.sent_at IS NULL
    ORDER BY b.id LIMIT 1
) head ON true
ORDER BY s.n
