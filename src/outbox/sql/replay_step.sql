-- Files the next sent messages of a lane for another publish, spaced by the rate.
-- $1 lane, $2 first position, $3 rows looked at, $4 since, $5 until, $6 aggregate type, $7 aggregate id, $8 event type,
-- $9 message ids, $10 first due in (s), $11 seconds between two, $12 dry run
WITH step AS (
    SELECT m.lane, m.id, m.message_id, m.aggregate_type, m.aggregate_id, m.event_type, m.created_at, m.sent_at
    FROM outbox.message m
    WHERE m.lane = $1 AND m.id >= $2
    ORDER BY m.id
    LIMIT $3
), chosen AS (
    SELECT s.lane, s.id, s.message_id, s.aggregate_type, s.aggregate_id, row_number() OVER (ORDER BY s.id) - 1 AS n
    FROM step s
    WHERE s.sent_at IS NOT NULL
      -- A message without an id cannot be filed, and would fail the whole step.
      AND s.message_id IS NOT NULL
      AND ($4::timestamptz IS NULL OR s.created_at >= $4)
      AND ($5::timestamptz IS NULL OR s.created_at < $5)
      AND ($6::text IS NULL OR s.aggregate_type = $6)
      AND ($7::text IS NULL OR s.aggregate_id = $7)
      AND ($8::text IS NULL OR s.event_type = $8)
      AND (cardinality($9::uuid[]) = 0 OR s.message_id = ANY ($9))
      AND NOT EXISTS (SELECT FROM outbox.waiting w
                      WHERE w.lane = s.lane AND w.id = s.id AND w.message_id = s.message_id OFFSET 0)
      AND NOT EXISTS (SELECT FROM outbox.dead d
                      WHERE d.lane = s.lane AND d.id = s.id AND d.message_id = s.message_id OFFSET 0)
), filed AS (
    INSERT INTO outbox.waiting AS w (lane, id, message_id, key_hash, cause, replay, due_at, due_since)
    SELECT c.lane, c.id, c.message_id, outbox.key_hash(c.aggregate_type, c.aggregate_id), 'replay', true,
           clock_timestamp() + ($10 + c.n * $11) * interval '1 second', clock_timestamp()
    FROM chosen c
    WHERE NOT $12::boolean
    ORDER BY c.id
    -- Another replay may have filed the message since this statement began: that one reports it. The record of an earlier
    -- message at this position is replaced.
    ON CONFLICT (lane, id) DO UPDATE
    SET message_id = excluded.message_id, key_hash = excluded.key_hash, cause = excluded.cause, replay = excluded.replay,
        due_at = excluded.due_at, due_since = excluded.due_since, attempts = excluded.attempts, reason = excluded.reason,
        last_error = excluded.last_error, destination = excluded.destination, failed_probes = excluded.failed_probes,
        redriven = excluded.redriven
    WHERE w.message_id <> excluded.message_id
    RETURNING w.id
)
SELECT (SELECT max(step.id) FROM step) AS last,
       (SELECT count(*) FROM step) AS looked,
       (SELECT count(*) FROM chosen) AS chosen,
       (SELECT count(*) FROM filed) AS filed,
       (SELECT coalesce(array_agg(c.message_id), '{}') FROM chosen c
         WHERE NOT $12::boolean AND c.id NOT IN (SELECT f.id FROM filed f)) AS unfiled,
       (SELECT coalesce(array_agg(c.message_id ORDER BY c.n), '{}') FROM chosen c
         WHERE ($12::boolean OR c.id IN (SELECT f.id FROM filed f)) AND (c.n < 1000 OR cardinality($9::uuid[]) > 0))
           AS message_ids
