-- The destination works again: the first held messages become due. $1 destination, $2 rows
WITH chosen AS (
    SELECT w.lane, w.id FROM outbox.waiting w
    WHERE w.cause = 'held' AND w.due_at IS NULL AND w.destination = $1
    ORDER BY w.id
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
UPDATE outbox.waiting w
SET due_at = clock_timestamp()
FROM chosen c
WHERE w.lane = c.lane AND w.id = c.id
