-- Files messages as dead. $1 lane, $2 id, $3 reason, $4 attempts, $5 error, $6 replay
INSERT INTO outbox.dead AS d (lane, id, message_id, reason, attempts, last_error, replay)
SELECT m.lane, m.id, m.message_id, s.reason, s.attempts, s.error, s.replay
FROM unnest($1::smallint[], $2::bigint[], $3::text[], $4::integer[], $5::text[], $6::boolean[])
     AS s (lane, id, reason, attempts, error, replay)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
ON CONFLICT (lane, id) DO UPDATE
SET message_id = excluded.message_id, reason = excluded.reason, attempts = excluded.attempts, last_error = excluded.last_error,
    replay = excluded.replay, died_at = clock_timestamp()
RETURNING d.lane, d.id
