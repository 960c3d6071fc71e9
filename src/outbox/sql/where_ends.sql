-- The first and the last position in the table: one index probe a lane for each.
SELECT min(first.id) AS first, max(last.id) AS last
FROM generate_series(0, 63) AS l (lane)
CROSS JOIN LATERAL (SELECT m.id FROM outbox.message m WHERE m.lane = l.lane::smallint ORDER BY m.id LIMIT 1) first
CROSS JOIN LATERAL (SELECT m.id FROM outbox.message m WHERE m.lane = l.lane::smallint ORDER BY m.id DESC LIMIT 1) last
