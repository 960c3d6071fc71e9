-- Which of these records are still there. $1 lanes, $2 ids
SELECT w.lane, w.id
FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
JOIN outbox.waiting w ON w.lane = s.lane AND w.id = s.id
ORDER BY w.id
