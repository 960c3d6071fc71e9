-- The next messages of the lanes held: what fell due among the waiting ones, then new ones by position.
-- A statement of its own after the locks: its snapshot must show what the lane's last holder committed.
-- $1 lanes, $2 their marks, $3 new messages a lane, $4 messages in all, $5 due ones among them,
-- $6 bytes in all (the first message is always returned), $7 bytes of one body that are fetched at most
-- OFFSET 0 keeps each look into the exceptions an index probe: PostgreSQL would else hash all of outbox.waiting for it,
-- with the plan of a day when it was small.
WITH lane AS MATERIALIZED (
    -- With nothing filed above the mark, no message needs a look into the exceptions.
    SELECT u.lane,
           u.low_water,
           EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = u.lane AND w.id > u.low_water) AS some_waiting,
           EXISTS (SELECT FROM outbox.dead d WHERE d.lane = u.lane AND d.id > u.low_water) AS some_dead,
           EXISTS (SELECT FROM outbox.waiting w
                    WHERE w.lane = u.lane AND w.key_hash IS NOT NULL AND NOT w.replay AND w.cause <> 'scheduled'
                    OFFSET 0) AS some_blocking
    FROM unnest($1::smallint[], $2::bigint[]) AS u (lane, low_water)
), due AS (
    SELECT true AS filed, l.some_blocking, w.lane, w.id, w.message_id AS filed_message_id, w.key_hash,
           w.attempts, w.replay, false AS scheduled, m.message_id, m.aggregate_type, m.aggregate_id,
           m.event_type, m.content_type, m.headers, m.exchange, m.routing_key, m.created_at,
           m.payload, m.binary_payload
    FROM lane l
    CROSS JOIN LATERAL (
        SELECT * FROM outbox.waiting w
        WHERE w.lane = l.lane AND w.due_at <= clock_timestamp()
        ORDER BY w.due_at
        LIMIT $5
    ) w
    LEFT JOIN outbox.message m ON m.lane = w.lane AND m.id = w.id
    LIMIT $5
), fresh AS (
    SELECT false AS filed, l.some_blocking, m.lane, m.id, m.message_id AS filed_message_id,
           outbox.key_hash(m.aggregate_type, m.aggregate_id) AS key_hash,
           0 AS attempts, false AS replay, coalesce(m.available_at > clock_timestamp(), false) AS scheduled,
           m.message_id, m.aggregate_type, m.aggregate_id, m.event_type, m.content_type, m.headers, m.exchange,
           m.routing_key, m.created_at, m.payload, m.binary_payload
    FROM lane l
    CROSS JOIN LATERAL (
        SELECT *
        FROM outbox.message m
        WHERE m.lane = l.lane
          AND m.id > l.low_water
          AND m.sent_at IS NULL
          AND (NOT l.some_waiting
               OR NOT EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = m.lane AND w.id = m.id OFFSET 0))
          AND (NOT l.some_dead
               OR NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = m.lane AND d.id = m.id OFFSET 0))
        ORDER BY m.id
        LIMIT $3
    ) m
), found AS (
    SELECT * FROM due UNION ALL SELECT * FROM fresh LIMIT $4
), sized AS (
    SELECT f.*, coalesce(octet_length(binary_payload), octet_length(payload::text), 0)::bigint AS body_size
    FROM found f
), summed AS (
    SELECT s.*, sum(body_size) OVER (ROWS UNBOUNDED PRECEDING) - body_size AS bytes_before
    FROM sized s
)
SELECT filed, lane, id, filed_message_id, key_hash, attempts, replay, scheduled, message_id,
       left(aggregate_type, 131073) AS aggregate_type, left(aggregate_id, 131073) AS aggregate_id,
       -- Longer ones are refused anyway; a gigabyte of name must not reach the relay to be refused.
       left(event_type, 256) AS event_type, left(content_type, 256) AS content_type,
       left(headers::text, 131073) AS headers,
       left(exchange, 256) AS exchange, left(routing_key, 256) AS routing_key,
       created_at, body_size,
       CASE WHEN body_size <= $7 THEN payload END AS payload,
       CASE WHEN body_size <= $7 THEN binary_payload END AS binary_payload,
       CASE WHEN some_blocking AND key_hash IS NOT NULL AND NOT replay THEN (
           SELECT max(b.id) FROM outbox.waiting b
           WHERE b.lane = summed.lane AND b.key_hash = summed.key_hash AND b.id < summed.id
             AND NOT b.replay AND b.cause <> 'scheduled'
       ) END AS after_id
FROM summed
WHERE bytes_before < $6
