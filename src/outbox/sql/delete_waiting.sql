-- Removes settled messages from outbox.waiting.
DELETE FROM outbox.waiting w
USING unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
WHERE w.lane = s.lane AND w.id = s.id
