-- One step of retention: reads the next rows of a lane, deletes the rows that were sent long enough ago, and returns where it
-- stopped. If the lane's first row is too young, all rows after it probably are, so the step reads only a few of them.
-- $1 lane, $2 first position, $3 rows to read, $4 kept for (seconds), $5 pass over every younger row
-- The mark is a value of its own. With a join, the step would read every row above the mark and discard it.
WITH mark AS MATERIALIZED (
    SELECT l.low_water,
           EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = l.lane AND w.id >= $2 AND w.id <= l.low_water)
               AS some_waiting,
           EXISTS (SELECT FROM outbox.dead d WHERE d.lane = l.lane AND d.id >= $2 AND d.id <= l.low_water) AS some_dead
    FROM ONLY outbox.lane l
    WHERE l.lane = $1
), size AS MATERIALIZED (
    SELECT CASE WHEN NOT $5::boolean AND (
        SELECT m.sent_at >= clock_timestamp() - $4 * interval '1 second'
        FROM outbox.message m
        WHERE m.lane = $1 AND m.id >= $2 AND m.id <= (SELECT mark.low_water FROM mark)
        ORDER BY m.id
        LIMIT 1
    ) THEN least($3, 100) ELSE $3 END AS rows
), step AS MATERIALIZED (
    SELECT m.ctid AS place, m.id, m.message_id,
           coalesce(m.sent_at < clock_timestamp() - $4 * interval '1 second', false) AS old,
           -- A time ahead tells nothing about the rows after this one: somebody wrote it, or the clock was set back since.
           coalesce(m.sent_at BETWEEN clock_timestamp() - $4 * interval '1 second' AND clock_timestamp(), false) AS young,
           m.sent_at IS NULL AS unsent
    FROM outbox.message m
    WHERE m.lane = $1 AND m.id >= $2 AND m.id <= (SELECT mark.low_water FROM mark)
    ORDER BY m.id
    LIMIT (SELECT size.rows FROM size)
), stop AS (
    -- The step ends at the first young row that has no old row after it. It passes over other young rows (a redrive may
    -- have sent them late), and over unsent, dead and waiting rows.
    SELECT min(s.id) AS id
    FROM step s
    WHERE s.young AND NOT $5::boolean
      AND s.id > coalesce((SELECT max(o.id) FROM step o WHERE o.old), '-9223372036854775808'::bigint)
), chosen AS MATERIALIZED (
    SELECT s.place, s.id
    FROM step s
    WHERE s.old
      AND (NOT (SELECT mark.some_waiting FROM mark)
           OR NOT EXISTS (SELECT FROM outbox.waiting w
                          WHERE w.lane = $1 AND w.id = s.id AND w.message_id = s.message_id OFFSET 0))
      AND (NOT (SELECT mark.some_dead FROM mark)
           OR NOT EXISTS (SELECT FROM outbox.dead d
                          WHERE d.lane = $1 AND d.id = s.id AND d.message_id = s.message_id OFFSET 0))
), gone AS (
    -- This finds rows by ctid, because a second index scan took a third of a row's cost. It does not find a row that
    -- somebody has written meanwhile; the caller repeats the step.
    DELETE FROM outbox.message m
    USING chosen c
    WHERE m.ctid = c.place
    RETURNING m.id
), kept AS (
    SELECT c.id FROM chosen c
    WHERE (SELECT count(*) FROM gone) < (SELECT count(*) FROM chosen)
      AND NOT EXISTS (SELECT FROM gone g WHERE g.id = c.id)
)
SELECT (SELECT count(*) FROM step) >= (SELECT size.rows FROM size) AS full,
       (SELECT count(*) FROM gone) AS deleted,
       -- Chosen and not deleted.
       (SELECT coalesce(array_agg(k.id ORDER BY k.id), '{}') FROM kept k) AS kept,
       -- Stranded messages are left to the audit: unsent, at or below the mark, and filed nowhere.
       EXISTS (SELECT FROM step s
               WHERE s.unsent
                 AND NOT EXISTS (SELECT FROM outbox.waiting w
                                 WHERE w.lane = $1 AND w.id = s.id AND w.message_id = s.message_id OFFSET 0)
                 AND NOT EXISTS (SELECT FROM outbox.dead d
                                 WHERE d.lane = $1 AND d.id = s.id AND d.message_id = s.message_id OFFSET 0)) AS stranded,
       (SELECT max(s.id) FROM step s WHERE (SELECT stop.id FROM stop) IS NULL OR s.id < (SELECT stop.id FROM stop)) AS passed
