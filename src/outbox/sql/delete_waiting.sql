-- Settled messages leave the waiting ones.
DELETE FROM outbox.waiting w
USING unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
WHERE w.lane = s.lane AND w.id = s.id
