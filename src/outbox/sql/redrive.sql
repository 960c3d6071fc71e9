-- Makes dead messages due at once, with all their attempts ahead of them. A message that was marked as sent meanwhile stays
-- sent.
-- $1 lane, $2 id, $3 replay
INSERT INTO outbox.waiting (lane, id, message_id, key_hash, cause, replay, due_at, due_since)
SELECT m.lane, m.id, m.message_id, outbox.key_hash(m.aggregate_type, m.aggregate_id), 'redrive', s.replay,
       clock_timestamp(), clock_timestamp()
FROM unnest($1::smallint[], $2::bigint[], $3::boolean[]) AS s (lane, id, replay)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
WHERE m.sent_at IS NULL OR s.replay
ON CONFLICT (lane, id) DO NOTHING
RETURNING message_id
