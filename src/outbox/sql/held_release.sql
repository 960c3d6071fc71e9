-- The destination works again: the first held messages become due. Returns how many were chosen, and how many are due now: a
-- trigger can keep the records as they were. $1 destination, $2 rows
WITH chosen AS (
    SELECT w.lane, w.id FROM outbox.waiting w
    WHERE w.cause = 'held' AND w.due_at IS NULL AND w.destination = $1
    ORDER BY w.id
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), released AS (
    UPDATE outbox.waiting w
    SET due_at = clock_timestamp()
    FROM chosen c
    WHERE w.lane = c.lane AND w.id = c.id
    RETURNING w.due_at IS NOT NULL AS written
)
SELECT (SELECT count(*) FROM chosen) AS chosen, (SELECT count(*) FROM released WHERE written) AS written
