-- The age of the oldest sent message that retention could delete, among the first rows of each lane. Rows that are filed stay.
SELECT (extract(epoch FROM clock_timestamp() - min(front.sent_at)))::float8 AS seconds
FROM outbox.lane l
CROSS JOIN LATERAL (
    SELECT m.lane, m.id, m.message_id, m.sent_at
    FROM outbox.message m
    WHERE m.lane = l.lane AND m.id <= l.low_water
    ORDER BY m.id
    LIMIT 100
) front
WHERE isfinite(front.sent_at)
  AND NOT EXISTS (SELECT FROM outbox.waiting w
                  WHERE w.lane = front.lane AND w.id = front.id AND w.message_id = front.message_id OFFSET 0)
  AND NOT EXISTS (SELECT FROM outbox.dead d
                  WHERE d.lane = front.lane AND d.id = front.id AND d.message_id = front.message_id OFFSET 0)
