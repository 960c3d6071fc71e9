-- retention.sent = "0s": a sent message is not kept.
DELETE FROM outbox.message m
USING unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
WHERE m.lane = s.lane AND m.id = s.id
