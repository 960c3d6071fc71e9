-- How long the oldest open transaction has kept marks back, as far as the messages prove it: a message that was written after
-- that transaction began, and when. A hundred rows above each mark are read.
SELECT count(DISTINCT l.lane) AS lanes,
       coalesce(max(extract(epoch FROM clock_timestamp() - front.created_at)), 0)::float8 AS seconds
FROM outbox.lane l
CROSS JOIN LATERAL (
    SELECT m.tx, m.created_at
    FROM outbox.message m
    WHERE m.lane = l.lane AND m.id > l.low_water
    ORDER BY m.id
    LIMIT 100
) front
WHERE front.tx > pg_snapshot_xmin(pg_current_snapshot()) AND isfinite(front.created_at)
