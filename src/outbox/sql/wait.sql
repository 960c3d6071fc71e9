-- Files messages as waiting, or updates the records of messages that wait already. Due times come from the database's clock.
-- Returns the records as they are now, because a trigger can keep them as they were. statement_timestamp() is the same in both
-- places. in_ms: NULL without a due time. is_own: the record is not that of an earlier message at this position.
-- $1 lane, $2 id, $3 cause, $4 delay in ms, $5 attempts, $6 reason, $7 error, $8 destination, $9 its failed probes
INSERT INTO outbox.waiting AS w
       (lane, id, message_id, key_hash, cause, due_at, due_since, attempts, reason, last_error, destination, failed_probes)
SELECT m.lane, m.id, m.message_id, outbox.key_hash(m.aggregate_type, m.aggregate_id), s.cause,
       CASE -- Somebody may have brought it forward since the claim read it.
            WHEN s.cause = 'scheduled' THEN coalesce(m.available_at, statement_timestamp())
            WHEN s.cause IN ('behind', 'held') THEN NULL
            ELSE statement_timestamp() + s.delay_ms * interval '1 millisecond' END,
       -- A time that lies ahead was written by a clock that was set back since: it would hide the lag.
       CASE WHEN s.cause = 'scheduled' THEN greatest(m.created_at, m.available_at)
            ELSE least(greatest(m.created_at, m.available_at), clock_timestamp()) END,
       s.attempts, s.reason, s.error, s.destination, s.failed_probes
FROM unnest($1::smallint[], $2::bigint[], $3::text[], $4::bigint[], $5::integer[], $6::text[], $7::text[],
            $8::bigint[], $9::integer[])
     AS s (lane, id, cause, delay_ms, attempts, reason, error, destination, failed_probes)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
-- Nothing is kept of the record of an earlier message at this position.
ON CONFLICT (lane, id) DO UPDATE
SET message_id = excluded.message_id, key_hash = excluded.key_hash,
    replay = w.replay AND w.message_id = excluded.message_id,
    redriven = CASE WHEN w.message_id = excluded.message_id THEN w.redriven ELSE 0 END,
    cause = excluded.cause, due_at = excluded.due_at, attempts = excluded.attempts,
    due_since = CASE WHEN w.message_id <> excluded.message_id OR excluded.cause = 'scheduled' THEN excluded.due_since
                     ELSE least(w.due_since, clock_timestamp()) END,
    reason = CASE WHEN w.message_id = excluded.message_id THEN coalesce(excluded.reason, w.reason)
                  ELSE excluded.reason END,
    last_error = CASE WHEN w.message_id = excluded.message_id THEN coalesce(excluded.last_error, w.last_error)
                      ELSE excluded.last_error END,
    destination = excluded.destination, failed_probes = excluded.failed_probes
RETURNING w.lane, w.id, w.cause, w.attempts,
          EXISTS (SELECT FROM outbox.message m WHERE m.lane = w.lane AND m.id = w.id AND m.message_id = w.message_id) AS is_own,
          CASE WHEN isfinite(w.due_at)
               THEN round(extract(epoch FROM w.due_at - statement_timestamp()) * 1000)::bigint
               WHEN w.due_at > statement_timestamp() THEN 9223372036854775807
               WHEN w.due_at < statement_timestamp() THEN -9223372036854775808 END AS in_ms
