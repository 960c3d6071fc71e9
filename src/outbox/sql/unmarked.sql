-- Which of these messages are there and not marked. `corrected`: somebody else changed what was published. A trigger that
-- changes it in this transaction is not somebody else: the message would be published again and again.
-- $1 lanes, $2 ids, $3 transactions that wrote what was published
SELECT m.lane, m.id, coalesce(m.tx, '0') NOT IN (s.tx, pg_current_xact_id()) AS corrected
FROM unnest($1::smallint[], $2::bigint[], $3::xid8[]) AS s (lane, id, tx)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
WHERE m.sent_at IS NULL
