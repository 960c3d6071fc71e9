-- retention.sent = "0s": a sent message is not kept. The place is compared twice, as in mark_sent.sql. $1 ctids, $2 ids
DELETE FROM outbox.message m
USING unnest($1::tid[], $2::bigint[]) AS s (place, id)
WHERE m.ctid = s.place AND m.id = s.id AND (m.ctid = s.place) IS TRUE
