-- $1 reasons, $2 aggregate type, $3 aggregate id, $4 event type, $5 dead for at least (s), $6 message ids, $7 rows
SELECT d.message_id, d.reason, d.attempts, d.last_error, d.replay, d.id AS position,
       to_char(d.died_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS died_at,
       to_char(m.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at,
       m.aggregate_type, m.aggregate_id, m.event_type, m.content_type, m.exchange, m.routing_key,
       coalesce(octet_length(m.binary_payload), octet_length(m.payload::text), 0)::bigint AS body_size
FROM outbox.dead d
LEFT JOIN outbox.message m ON m.lane = d.lane AND m.id = d.id
WHERE (cardinality($1::text[]) = 0 OR d.reason = ANY ($1))
  AND ($2::text IS NULL OR m.aggregate_type = $2)
  AND ($3::text IS NULL OR m.aggregate_id = $3)
  AND ($4::text IS NULL OR m.event_type = $4)
  AND ($5::double precision IS NULL OR d.died_at <= clock_timestamp() - $5 * interval '1 second')
  AND (cardinality($6::uuid[]) = 0 OR d.message_id = ANY ($6))
ORDER BY d.died_at, d.id
LIMIT $7
