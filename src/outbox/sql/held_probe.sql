-- Makes one held message of a destination due, as its probe: the next message after a position, otherwise the first. So the
-- messages take turns. `written`: a trigger can keep the record as it was. $1 destination, $2 position
WITH chosen AS (
    SELECT later.lane, later.id FROM (
        SELECT w.lane, w.id FROM outbox.waiting w
        WHERE w.cause = 'held' AND w.due_at IS NULL AND w.destination = $1 AND w.id > $2
        ORDER BY w.id LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) later
    UNION ALL
    SELECT any_.lane, any_.id FROM (
        SELECT w.lane, w.id FROM outbox.waiting w
        WHERE w.cause = 'held' AND w.due_at IS NULL AND w.destination = $1
        ORDER BY w.id LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) any_
    LIMIT 1
), made_due AS (
    UPDATE outbox.waiting w
    SET cause = 'probe', due_at = clock_timestamp()
    FROM chosen c
    WHERE w.lane = c.lane AND w.id = c.id
    RETURNING w.id, w.cause = 'probe' AND w.due_at IS NOT NULL AS written
)
SELECT c.id, coalesce(m.written, false) AS written FROM chosen c LEFT JOIN made_due m ON m.id = c.id
