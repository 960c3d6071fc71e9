-- Makes held messages due for one last attempt when they have failed often enough. The count is their own attempts plus the
-- probes that failed since they were held. The index waiting_spent has those with the most failures first, so that the statement
-- reads only what it gives up, of perhaps a million. Returns as held_release.sql.
-- $1 destination, $2 failed probes so far, $3 attempts that are enough, $4 rows
WITH chosen AS (
    SELECT w.lane, w.id FROM outbox.waiting w
    WHERE w.cause = 'held' AND w.due_at IS NULL AND w.destination = $1
      AND w.attempts - w.failed_probes >= $3 - $2
      AND w.attempts + greatest($2 - w.failed_probes, 0) >= $3
    ORDER BY w.attempts - w.failed_probes DESC, w.id
    LIMIT $4
    FOR UPDATE SKIP LOCKED
), given_up AS (
    UPDATE outbox.waiting w
    SET cause = 'probe', due_at = clock_timestamp(), attempts = greatest(w.attempts, $3 - 1)
    FROM chosen c
    WHERE w.lane = c.lane AND w.id = c.id
    RETURNING w.cause = 'probe' AND w.due_at IS NOT NULL AS written
)
SELECT (SELECT count(*) FROM chosen) AS chosen, (SELECT count(*) FROM given_up WHERE written) AS written
