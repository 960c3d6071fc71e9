-- Files stranded messages of the lanes that this session holds; they are published in the order of their positions. This
-- statement runs after the locks: since the walk, somebody may have sent or filed the messages, or moved the mark.
-- $1 lanes, $2 ids
INSERT INTO outbox.waiting AS w (lane, id, message_id, key_hash, cause, due_at, due_since)
SELECT m.lane, m.id, m.message_id, outbox.key_hash(m.aggregate_type, m.aggregate_id),
       CASE WHEN m.available_at > statement_timestamp() THEN 'scheduled' ELSE 'stranded' END,
       CASE WHEN m.available_at > statement_timestamp() THEN m.available_at
            ELSE statement_timestamp() + row_number() OVER (ORDER BY m.id) * interval '1 microsecond' END,
       greatest(least(m.created_at, statement_timestamp()), m.available_at)
FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
JOIN ONLY outbox.lane l ON l.lane = m.lane
WHERE m.sent_at IS NULL AND m.id <= l.low_water
  AND NOT EXISTS (SELECT FROM outbox.dead d
                  WHERE d.lane = m.lane AND d.id = m.id AND d.message_id = m.message_id OFFSET 0)
-- The record of an earlier message at this position is replaced.
ON CONFLICT (lane, id) DO UPDATE
SET message_id = excluded.message_id, key_hash = excluded.key_hash, cause = excluded.cause, replay = excluded.replay,
    due_at = excluded.due_at, due_since = excluded.due_since, attempts = excluded.attempts, reason = excluded.reason,
    last_error = excluded.last_error, destination = excluded.destination, failed_probes = excluded.failed_probes
WHERE w.message_id <> excluded.message_id
