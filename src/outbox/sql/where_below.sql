-- The highest position of any lane that is not above this one: one index probe a lane. $1 position
SELECT max(near.id) AS id
FROM generate_series(0, 63) AS l (lane)
CROSS JOIN LATERAL (
    SELECT m.id FROM outbox.message m WHERE m.lane = l.lane::smallint AND m.id <= $1 ORDER BY m.id DESC LIMIT 1
) near
