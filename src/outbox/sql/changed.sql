-- Which of these messages somebody corrected since the claim read them. It runs after the records are written: where the write
-- of a record waited for somebody who corrects its message, a statement that compares and writes would not see the correction.
-- A transaction of its own is not somebody else: see unmarked.sql. $1 lanes, $2 ids, $3 transactions that wrote what was read
SELECT m.lane, m.id
FROM unnest($1::smallint[], $2::bigint[], $3::xid8[]) AS s (lane, id, tx)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
WHERE coalesce(m.tx, '0') NOT IN (s.tx, pg_current_xact_id()) AND m.sent_at IS NULL
