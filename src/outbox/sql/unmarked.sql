-- Which of these messages are there and not marked. `corrected`: it is no longer what was published.
-- $1 lanes, $2 ids, $3 transactions that wrote what was published
SELECT m.lane, m.id, m.tx <> s.tx AS corrected
FROM unnest($1::smallint[], $2::bigint[], $3::xid8[]) AS s (lane, id, tx)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
WHERE m.sent_at IS NULL
