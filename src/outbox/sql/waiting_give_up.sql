-- Files waiting messages of a lane as dead; the caller holds the lane, and removes their records from outbox.waiting. Returns
-- the records as they are now: a trigger can keep the record of an earlier message at this position. $1 lane, $2 ids,
-- $3 message ids, $4 errors
INSERT INTO outbox.dead AS d (lane, id, message_id, reason, attempts, last_error, replay, redriven)
SELECT w.lane, w.id, w.message_id, 'given_up', w.attempts, s.error, w.replay, w.redriven
FROM unnest($2::bigint[], $3::uuid[], $4::text[]) AS s (id, message_id, error)
JOIN outbox.waiting w ON w.lane = $1 AND w.id = s.id AND w.message_id = s.message_id
ON CONFLICT (lane, id) DO UPDATE
SET message_id = excluded.message_id, reason = excluded.reason, attempts = excluded.attempts, last_error = excluded.last_error,
    replay = excluded.replay, redriven = excluded.redriven, died_at = clock_timestamp()
RETURNING d.id, d.message_id, d.reason = 'given_up' AS written
