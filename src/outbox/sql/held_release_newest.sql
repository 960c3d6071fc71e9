-- Untried destinations of an exchange are tried: the newest held messages become due. Returns as held_release.sql does.
-- $1 destination, $2 rows
WITH chosen AS (
    SELECT w.lane, w.id FROM outbox.waiting w
    WHERE w.cause = 'held' AND w.due_at IS NULL AND w.destination = $1
    ORDER BY w.id DESC
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
