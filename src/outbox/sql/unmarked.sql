-- Finds the messages that exist and are not marked as sent. $1 lanes, $2 ids
SELECT m.lane, m.id
FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
WHERE m.sent_at IS NULL
