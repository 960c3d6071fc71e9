-- Deletes sent messages at the settle, with retention.sent = "0s". $1 ctids, $2 ids
DELETE FROM outbox.message m
USING unnest($1::tid[], $2::bigint[]) AS s (place, id)
WHERE m.ctid = s.place AND m.id = s.id
