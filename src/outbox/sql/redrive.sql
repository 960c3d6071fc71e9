-- Makes dead messages due at once, with all their attempts ahead of them. A message that was marked as sent meanwhile stays
-- sent.
-- $1 lane, $2 id, $3 replay, $4 redriven before
INSERT INTO outbox.waiting AS w (lane, id, message_id, key_hash, cause, replay, due_at, due_since, redriven)
SELECT m.lane, m.id, m.message_id, outbox.key_hash(m.aggregate_type, m.aggregate_id), 'redrive',
       s.replay AND m.sent_at IS NOT NULL,
       clock_timestamp(), clock_timestamp(), s.redriven + 1
FROM unnest($1::smallint[], $2::bigint[], $3::boolean[], $4::integer[]) AS s (lane, id, replay, redriven)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
WHERE m.sent_at IS NULL OR s.replay
-- The record of an earlier message at this position is replaced.
ON CONFLICT (lane, id) DO UPDATE
SET message_id = excluded.message_id, key_hash = excluded.key_hash, cause = excluded.cause, replay = excluded.replay,
    due_at = excluded.due_at, due_since = excluded.due_since, attempts = excluded.attempts, reason = excluded.reason,
    last_error = excluded.last_error, destination = excluded.destination, failed_probes = excluded.failed_probes,
    redriven = excluded.redriven
WHERE w.message_id <> excluded.message_id
RETURNING w.message_id
