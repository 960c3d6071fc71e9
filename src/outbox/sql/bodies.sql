-- Fetches bodies that read.sql left out because of their size. $1 lanes, $2 ids
SELECT m.lane, m.id, m.payload, m.binary_payload
FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
