-- Files messages as dead. Passes over a message that somebody corrected meanwhile: the outcome is that of its old version.
-- A transaction of its own is not somebody else: see unmarked.sql. Returns whether the record is the message's own, because a
-- trigger can keep the record of an earlier message at this position.
-- $1 lane, $2 id, $3 transaction that wrote what was read, $4 reason, $5 attempts, $6 error, $7 replay
INSERT INTO outbox.dead AS d (lane, id, message_id, reason, attempts, last_error, replay, redriven)
SELECT m.lane, m.id, m.message_id, s.reason, s.attempts, s.error, s.replay,
       coalesce((SELECT w.redriven FROM outbox.waiting w
                 WHERE w.lane = m.lane AND w.id = m.id AND w.message_id = m.message_id), 0)
FROM unnest($1::smallint[], $2::bigint[], $3::xid8[], $4::text[], $5::integer[], $6::text[], $7::boolean[])
     AS s (lane, id, tx, reason, attempts, error, replay)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id AND coalesce(m.tx, '0') IN (s.tx, pg_current_xact_id())
ON CONFLICT (lane, id) DO UPDATE
SET message_id = excluded.message_id, reason = excluded.reason, attempts = excluded.attempts, last_error = excluded.last_error,
    replay = excluded.replay, redriven = excluded.redriven, died_at = clock_timestamp()
RETURNING d.lane, d.id,
          EXISTS (SELECT FROM outbox.message m WHERE m.lane = d.lane AND m.id = d.id AND m.message_id = d.message_id) AS is_own
