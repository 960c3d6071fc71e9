-- Finds the stranded messages among these ids, in any lane: 64 index probes for each id. $1 ids
SELECT m.lane, m.id
FROM unnest($1::bigint[]) AS s (id)
CROSS JOIN ONLY outbox.lane l
JOIN outbox.message m ON m.lane = l.lane AND m.id = s.id
WHERE m.sent_at IS NULL AND m.id <= l.low_water
  AND NOT EXISTS (SELECT FROM outbox.waiting w
                  WHERE w.lane = m.lane AND w.id = m.id AND w.message_id = m.message_id OFFSET 0)
  AND NOT EXISTS (SELECT FROM outbox.dead d
                  WHERE d.lane = m.lane AND d.id = m.id AND d.message_id = m.message_id OFFSET 0)
