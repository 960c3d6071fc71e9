-- A page of dead messages, the oldest first. $1 reasons, $2 aggregate type, $3 aggregate id, $4 event type, $5 dead for at
-- least (s), $6 message ids, $7 exchange, $8 routes (types, exchange) for messages that name none, $9 group, $10 rows, $11 died
-- at, $12 lane and $13 position of the last row of the page before; for the first page NULL, -1, 0.
-- A producer's text can have hundreds of megabytes, so the shown part is bounded. A character has up to four bytes, and
-- octet_length does not read the text.
SELECT d.message_id, left(d.reason, 100) AS reason, d.attempts, d.replay, d.redriven, d.lane, d.id AS position,
       d.died_at AS died, to_char(d.died_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS died_at,
       to_char(m.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at,
       CASE WHEN octet_length(d.last_error) > 16000 THEN left(d.last_error, 4000) || '...' ELSE d.last_error END
           AS last_error,
       CASE WHEN octet_length(t.aggregate_type) > 4000 THEN left(t.aggregate_type, 1000) || '...'
            ELSE t.aggregate_type END AS aggregate_type,
       CASE WHEN octet_length(t.aggregate_id) > 4000 THEN left(t.aggregate_id, 1000) || '...'
            ELSE t.aggregate_id END AS aggregate_id,
       CASE WHEN octet_length(t.event_type) > 4000 THEN left(t.event_type, 1000) || '...'
            ELSE t.event_type END AS event_type,
       CASE WHEN octet_length(t.content_type) > 4000 THEN left(t.content_type, 1000) || '...'
            ELSE t.content_type END AS content_type,
       CASE WHEN octet_length(t.exchange) > 4000 THEN left(t.exchange, 1000) || '...'
            ELSE t.exchange END AS exchange,
       CASE WHEN octet_length(t.routing_key) > 4000 THEN left(t.routing_key, 1000) || '...'
            ELSE t.routing_key END AS routing_key,
       outbox.failure_group(d.reason, t.exchange, t.routing_key, t.aggregate_type, t.event_type, d.last_error) AS failure_group,
       coalesce(m.body_size, 0)::bigint AS body_size
FROM outbox.dead d
LEFT JOIN outbox.message m ON m.lane = d.lane AND m.id = d.id AND m.message_id = d.message_id
-- The texts of an unreadable message would fail the whole page, so they are left out.
LEFT JOIN outbox.message t ON t.lane = m.lane AND t.id = m.id AND d.reason <> 'unreadable'
WHERE (cardinality($1::text[]) = 0 OR d.reason = ANY ($1))
  AND ($2::text IS NULL OR m.aggregate_type = $2)
  AND ($3::text IS NULL OR m.aggregate_id = $3)
  AND ($4::text IS NULL OR m.event_type = $4)
  AND ($5::double precision IS NULL OR d.died_at <= clock_timestamp() - $5 * interval '1 second')
  AND (cardinality($6::uuid[]) = 0 OR d.message_id = ANY ($6))
  AND ($7::text IS NULL OR coalesce(m.exchange, (
           SELECT split_part(r.rule, chr(31), 3) FROM unnest($8::text[]) WITH ORDINALITY AS r (rule, n)
           WHERE m.aggregate_type LIKE split_part(r.rule, chr(31), 1)
             AND m.event_type LIKE split_part(r.rule, chr(31), 2)
           ORDER BY r.n LIMIT 1)) = $7)
  AND ($9::text IS NULL OR outbox.failure_group(d.reason, m.exchange, m.routing_key, m.aggregate_type,
                                                m.event_type, d.last_error) = $9)
  AND (d.died_at, d.lane, d.id) > (coalesce($11::timestamptz, '-infinity'), $12::smallint, $13::bigint)
ORDER BY d.died_at, d.lane, d.id
LIMIT $10
