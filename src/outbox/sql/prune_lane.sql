-- One step of retention: looks at the next rows of a lane above the cursor, deletes those that were sent long
-- enough ago, and says where it stopped. $1 lane, $2 cursor, $3 rows looked at, $4 kept for (seconds)
WITH step AS (
    SELECT m.id, m.sent_at < clock_timestamp() - $4 * interval '1 second' AS old, m.sent_at IS NULL AS unsent
    FROM outbox.message m
    JOIN outbox.lane l ON l.lane = m.lane
    WHERE m.lane = $1 AND m.id > $2 AND m.id <= l.low_water
    ORDER BY m.id
    LIMIT $3
), gone AS (
    DELETE FROM outbox.message m
    USING step s
    WHERE m.lane = $1 AND m.id = s.id AND s.old
      AND NOT EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = m.lane AND w.id = m.id OFFSET 0)
      AND NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = m.lane AND d.id = m.id OFFSET 0)
    RETURNING m.id
)
SELECT (SELECT count(*) FROM step) AS looked,
       (SELECT count(*) FROM gone) AS deleted,
       -- Up to the first row that is only too young; dead and waiting ones are passed over.
       coalesce((SELECT min(id) - 1 FROM step WHERE NOT unsent AND NOT old), (SELECT max(id) FROM step), $2) AS cursor
