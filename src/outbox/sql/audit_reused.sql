-- Whether positions begin again: a message that was written after a reading of the sequence has a position that was drawn
-- before it. Of each lane, the message with the highest of these positions is the newest. $1 drawn, $2 the time of that
-- reading, seconds
SELECT EXISTS (
    SELECT FROM generate_series(0, 63) AS l (lane)
    CROSS JOIN LATERAL (
        SELECT m.created_at FROM outbox.message m
        WHERE m.lane = l.lane::smallint AND m.id <= $1
        ORDER BY m.id DESC LIMIT 1
    ) newest
    WHERE isfinite(newest.created_at) AND extract(epoch FROM newest.created_at) > $2
) AS reused
