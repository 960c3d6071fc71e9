-- Lanes whose mark lags behind their last visible message, or is about to move.
SELECT l.lane, m.id AS last
FROM ONLY outbox.lane l
LEFT JOIN LATERAL (
    SELECT m.id FROM outbox.message m WHERE m.lane = l.lane AND m.id > l.low_water ORDER BY m.id DESC LIMIT 1
) m ON true
WHERE m.id IS NOT NULL OR l.candidate IS NOT NULL
