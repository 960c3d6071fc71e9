-- A message's body, up to the limit. $1 lane, $2 position, $3 most bytes
SELECT m.payload::text AS payload, m.binary_payload FROM outbox.message m WHERE m.lane = $1 AND m.id = $2 AND m.body_size <= $3
