-- Reads the next messages of the lanes that this session holds: waiting messages that fell due, then new messages by
-- position. This statement runs after the locks, because its snapshot must show what the lane's last holder committed.
-- $1 lanes, $2 their marks, $3 new messages to read of each lane, $4 messages in all, $5 due messages among them,
-- $6 the largest body that the row brings along; bodies.sql fetches larger bodies, up to the limit, $7 positions of due messages
-- to pass over, $8 positions of new messages to pass over, $9 hashes of keys whose new messages to pass over
-- Every row passes each level of the query once, and no level may materialize it (docs/internals/experiments.md). So there
-- is no window function, and statement_timestamp() instead of a volatile function.
-- A record belongs to a message only if its message_id is the row's: after TRUNCATE ... RESTART IDENTITY with triggers off,
-- for example, another message is at its position.
-- OFFSET 0 keeps each test against outbox.waiting and outbox.dead an index probe. Without it PostgreSQL may hash all of
-- outbox.waiting, with a plan from a time when the table was small.
-- The query measures no size: the insert stored body_size and headers_size. A measurement of compressed json would
-- decompress it.
WITH lane AS MATERIALIZED (
    -- If nothing is filed above the mark, no message needs a probe of outbox.waiting or outbox.dead.
    SELECT u.lane,
           u.low_water,
           u.share,
           EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = u.lane AND w.id > u.low_water) AS some_waiting,
           EXISTS (SELECT FROM outbox.dead d WHERE d.lane = u.lane AND d.id > u.low_water) AS some_dead,
           EXISTS (SELECT FROM outbox.waiting w
                    WHERE w.lane = u.lane AND w.key_hash IS NOT NULL AND NOT w.replay AND w.cause <> 'scheduled'
                    OFFSET 0) AS some_blocking,
           cardinality($8::bigint[]) + cardinality($9::bigint[]) > 0 AS some_passed
    FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS u (lane, low_water, share)
), due AS (
    SELECT true AS filed, l.some_blocking, w.lane, w.id, w.key_hash, w.attempts,
           -- Somebody has taken the mark back while the replay waited: the message is unsent, and gets its mark again.
           w.replay AND (m.id IS NULL OR m.sent_at IS NOT NULL) AS replay,
           -- Somebody has postponed the message since it was filed. A redrive was asked for, whatever the time.
           coalesce(NOT w.replay AND w.cause <> 'redrive' AND m.available_at > statement_timestamp(), false) AS scheduled,
           w.cause = 'probe' AS probe, coalesce(w.reason = 'unmarkable', false) AS unmarkable, w.destination,
           m.ctid AS place, m.tx, m.message_id, m.aggregate_type, m.aggregate_id, m.event_type, m.content_type, m.headers,
           m.exchange, m.routing_key, m.created_at, m.payload, m.binary_payload, m.body_size, m.headers_size
    FROM lane l
    CROSS JOIN LATERAL (
        SELECT w.lane, w.id, w.message_id, w.key_hash, w.attempts, w.replay, w.cause, w.reason, w.destination
        FROM outbox.waiting w
        WHERE w.lane = l.lane AND w.due_at <= statement_timestamp()
          -- PostgreSQL hashes a long list only with = ANY.
          AND (w.id = ANY ($7::bigint[])) IS NOT TRUE
        ORDER BY w.due_at
        LIMIT $5
    ) w
    -- A message that somebody has marked as sent is treated like a message that was deleted: its record is removed. So is
    -- the record of an earlier message at this position.
    LEFT JOIN outbox.message m ON m.lane = w.lane AND m.id = w.id AND m.message_id = w.message_id
                              AND (m.sent_at IS NULL OR w.replay)
    LIMIT $5
), fresh AS (
    SELECT false AS filed, l.some_blocking, m.lane, m.id, outbox.key_hash(m.aggregate_type, m.aggregate_id) AS key_hash,
           0 AS attempts, false AS replay, coalesce(m.available_at > statement_timestamp(), false) AS scheduled,
           false AS probe, false AS unmarkable, NULL::bigint AS destination,
           m.place, m.tx, m.message_id, m.aggregate_type, m.aggregate_id, m.event_type, m.content_type, m.headers, m.exchange,
           m.routing_key, m.created_at, m.payload, m.binary_payload, m.body_size, m.headers_size
    FROM lane l
    CROSS JOIN LATERAL (
        SELECT m.ctid AS place, m.tx, m.lane, m.id, m.message_id, m.aggregate_type, m.aggregate_id, m.event_type,
               m.content_type, m.headers, m.exchange, m.routing_key, m.available_at, m.created_at, m.payload,
               m.binary_payload, m.body_size, m.headers_size
        FROM outbox.message m
        WHERE m.lane = l.lane
          AND m.id > l.low_water
          AND m.sent_at IS NULL
          AND (NOT l.some_passed
               OR (m.id = ANY ($8::bigint[])) IS NOT TRUE
                  AND (outbox.key_hash(m.aggregate_type, m.aggregate_id) = ANY ($9::bigint[])) IS NOT TRUE)
          AND (NOT l.some_waiting
               OR NOT EXISTS (SELECT FROM outbox.waiting w
                              WHERE w.lane = m.lane AND w.id = m.id AND w.message_id = m.message_id OFFSET 0))
          AND (NOT l.some_dead
               OR NOT EXISTS (SELECT FROM outbox.dead d
                              WHERE d.lane = m.lane AND d.id = m.id AND d.message_id = m.message_id OFFSET 0))
        ORDER BY m.id
        LIMIT l.share
    ) m
), found AS (
    SELECT * FROM due UNION ALL SELECT * FROM fresh LIMIT $4
)
SELECT filed, lane, id, place, tx, key_hash, attempts, replay, scheduled, message_id,
       -- Longer texts are refused anyway; a gigabyte of name must not reach the relay to be refused.
       CASE WHEN octet_length(aggregate_type) <= 131072 THEN aggregate_type ELSE left(aggregate_type, 131073) END
           AS aggregate_type,
       CASE WHEN octet_length(aggregate_id) <= 131072 THEN aggregate_id ELSE left(aggregate_id, 131073) END
           AS aggregate_id,
       CASE WHEN octet_length(event_type) <= 255 THEN event_type ELSE left(event_type, 256) END AS event_type,
       CASE WHEN octet_length(content_type) <= 255 THEN content_type ELSE left(content_type, 256) END AS content_type,
       -- The relay refuses longer headers by their size (envelope.rs). Without a stored size (somebody dropped the column's
       -- expression) the compressed size counts: headers that are there must not be left out in silence.
       CASE WHEN coalesce(headers_size, pg_column_size(headers)) <= 131072 THEN headers END AS headers,
       coalesce(headers_size, pg_column_size(headers), 0) AS headers_size,
       left(exchange, 256) AS exchange, left(routing_key, 256) AS routing_key,
       created_at, body_size,
       CASE WHEN body_size <= $6 THEN payload END AS payload,
       CASE WHEN body_size <= $6 THEN binary_payload END AS binary_payload,
       CASE WHEN some_blocking AND key_hash IS NOT NULL AND NOT replay THEN (
           SELECT max(b.id) FROM outbox.waiting b
           WHERE b.lane = found.lane AND b.key_hash = found.key_hash AND b.id < found.id
             AND NOT b.replay AND b.cause <> 'scheduled'
       ) END AS after_id,
       probe, unmarkable, destination
FROM found
