-- What stands before a pending message in its lane, counted from the message backwards, and when the last messages of the lane
-- were sent. $1 lane, $2 position, $3 rows to read, $4 sent rows to read, $5 rows to read above the mark. A long transaction holds
-- the mark back: then the front may be beyond these rows, and `front` is the last of them.
WITH mark AS MATERIALIZED (
    SELECT coalesce((SELECT l.low_water FROM ONLY outbox.lane l WHERE l.lane = $1), 0) AS low_water
), looked AS MATERIALIZED (
    SELECT m.id, m.message_id, m.sent_at FROM outbox.message m
    WHERE m.lane = $1 AND m.id > (SELECT low_water FROM mark) AND m.id < $2
    ORDER BY m.id DESC LIMIT $3
), pending AS MATERIALIZED (
    SELECT k.id FROM looked k
    WHERE k.sent_at IS NULL
      AND NOT EXISTS (SELECT FROM outbox.waiting w
                      WHERE w.lane = $1 AND w.id = k.id AND w.message_id = k.message_id OFFSET 0)
      AND NOT EXISTS (SELECT FROM outbox.dead d
                      WHERE d.lane = $1 AND d.id = k.id AND d.message_id = k.message_id OFFSET 0)
), first_rows AS MATERIALIZED (
    SELECT m.id, m.message_id, m.sent_at FROM outbox.message m
    WHERE m.lane = $1 AND m.id > (SELECT low_water FROM mark) AND m.id < $2
    ORDER BY m.id LIMIT $5
), first_pending AS MATERIALIZED (
    -- The first that a claim would read.
    SELECT m.id FROM first_rows m
    WHERE m.sent_at IS NULL
      AND NOT EXISTS (SELECT FROM outbox.waiting w
                      WHERE w.lane = $1 AND w.id = m.id AND w.message_id = m.message_id OFFSET 0)
      AND NOT EXISTS (SELECT FROM outbox.dead d
                      WHERE d.lane = $1 AND d.id = m.id AND d.message_id = m.message_id OFFSET 0)
    ORDER BY m.id LIMIT 1
), front AS MATERIALIZED (
    SELECT CASE WHEN f.id IS NOT NULL THEN f.id WHEN r.n >= $5 THEN r.last ELSE $2 END AS id,
           f.id IS NULL AND r.n >= $5 AS is_far
    FROM (SELECT count(*) AS n, max(id) AS last FROM first_rows) r
    LEFT JOIN first_pending f ON true
)
SELECT (SELECT count(*) FROM looked) AS looked, (SELECT min(id) FROM looked) AS lowest,
       (SELECT count(*) FROM pending) AS pending, (SELECT id FROM front) AS front,
       (SELECT is_far FROM front) AS is_far,
       ARRAY(SELECT extract(epoch FROM clock_timestamp() - r.sent_at)::float8
             FROM (SELECT m.sent_at FROM outbox.message m
                   WHERE m.lane = $1 AND m.id < (SELECT id FROM front) ORDER BY m.id DESC LIMIT $4) r
             WHERE isfinite(r.sent_at)) AS sent_ages
