-- One step of retention: looks at the next rows of a lane above the cursor, deletes those that were sent long
-- enough ago, and says where it stopped. Of a lane whose first row is too young it looks at that row only. $1 lane,
-- $2 cursor, $3 rows looked at, $4 kept for (seconds)
-- The mark as a value of its own: as a join, every row above it would be read and thrown away.
WITH mark AS MATERIALIZED (
    SELECT l.low_water,
           EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = l.lane AND w.id > $2 AND w.id <= l.low_water)
               AS some_waiting,
           EXISTS (SELECT FROM outbox.dead d WHERE d.lane = l.lane AND d.id > $2 AND d.id <= l.low_water) AS some_dead
    FROM outbox.lane l
    WHERE l.lane = $1
), step AS (
    SELECT m.ctid AS place, m.id, m.sent_at < clock_timestamp() - $4 * interval '1 second' AS old,
           m.sent_at IS NULL AS unsent
    FROM outbox.message m
    WHERE m.lane = $1 AND m.id > $2 AND m.id <= (SELECT low_water FROM mark)
    ORDER BY m.id
    LIMIT CASE WHEN (
        SELECT m.sent_at >= clock_timestamp() - $4 * interval '1 second'
        FROM outbox.message m
        WHERE m.lane = $1 AND m.id > $2 AND m.id <= (SELECT low_water FROM mark)
        ORDER BY m.id
        LIMIT 1
    ) THEN 1 ELSE $3 END
), gone AS (
    -- By ctid: a second look into the index was a third of what a row cost. A row that somebody writes to meanwhile is
    -- not found, and stays.
    DELETE FROM outbox.message m
    USING step s
    WHERE m.ctid = s.place AND s.old
      AND (NOT (SELECT some_waiting FROM mark)
           OR NOT EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = $1 AND w.id = s.id OFFSET 0))
      AND (NOT (SELECT some_dead FROM mark)
           OR NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = $1 AND d.id = s.id OFFSET 0))
    RETURNING m.id
)
SELECT (SELECT count(*) FROM step) AS looked,
       (SELECT count(*) FROM gone) AS deleted,
       -- The audit's part: unsent, at or below the mark, and filed nowhere.
       EXISTS (SELECT FROM step s
               WHERE s.unsent
                 AND NOT EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = $1 AND w.id = s.id OFFSET 0)
                 AND NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = $1 AND d.id = s.id OFFSET 0)) AS stranded,
       -- Up to the first row that is only too young; dead and waiting ones are passed over.
       coalesce((SELECT min(id) - 1 FROM step WHERE NOT unsent AND NOT old), (SELECT max(id) FROM step), $2) AS cursor
