-- What delete_sent.sql did not find, as mark_moved.sql. $1 lanes, $2 ids, $3 transactions
DELETE FROM outbox.message m
USING unnest($1::smallint[], $2::bigint[], $3::xid8[]) AS s (lane, id, tx)
WHERE m.lane = s.lane AND m.id = s.id AND coalesce(m.tx, '0') = s.tx
