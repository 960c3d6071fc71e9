-- Makes the newest held message of the untried destinations of an exchange due, as their probe. `written`: a trigger can keep
-- the record as it was. $1 destination
WITH chosen AS (
    SELECT w.lane, w.id FROM outbox.waiting w
    WHERE w.cause = 'held' AND w.due_at IS NULL AND w.destination = $1
    ORDER BY w.id DESC
    LIMIT 1
    FOR UPDATE SKIP LOCKED
), made_due AS (
    UPDATE outbox.waiting w
    SET cause = 'probe', due_at = clock_timestamp()
    FROM chosen c
    WHERE w.lane = c.lane AND w.id = c.id
    RETURNING w.id, w.cause = 'probe' AND w.due_at IS NOT NULL AS written
)
SELECT c.id, coalesce(m.written, false) AS written FROM chosen c LEFT JOIN made_due m ON m.id = c.id
