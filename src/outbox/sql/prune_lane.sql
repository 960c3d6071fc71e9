-- One step of retention: reads the next rows of a lane above the cursor, deletes the rows that were sent long enough ago,
-- and returns where it stopped. If the lane's first row is too young, the step reads only that row.
-- $1 lane, $2 cursor, $3 rows to read, $4 kept for (seconds)
-- The mark is a value of its own. With a join, the step would read every row above the mark and discard it.
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
    -- This finds rows by ctid, because a second index scan took a third of a row's cost. It does not find a row that
    -- somebody has written meanwhile; that row stays.
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
       -- Stranded messages are left to the audit: unsent, at or below the mark, and filed nowhere.
       EXISTS (SELECT FROM step s
               WHERE s.unsent
                 AND NOT EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = $1 AND w.id = s.id OFFSET 0)
                 AND NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = $1 AND d.id = s.id OFFSET 0)) AS stranded,
       -- The step ends at the first row that is only too young; it passes over dead and waiting rows.
       coalesce((SELECT min(id) - 1 FROM step WHERE NOT unsent AND NOT old), (SELECT max(id) FROM step), $2) AS cursor
