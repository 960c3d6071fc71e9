-- What mark_sent.sql did not find: somebody wrote another version of the row under a held lane. With other contents it is not
-- what was published, and stays unsent (outbox.corrected). $1 lanes, $2 ids, $3 transactions that wrote what was published
UPDATE outbox.message m
SET sent_at = clock_timestamp()
FROM unnest($1::smallint[], $2::bigint[], $3::xid8[]) AS s (lane, id, tx)
WHERE m.lane = s.lane AND m.id = s.id AND m.sent_at IS NULL AND coalesce(m.tx, '0') = s.tx
RETURNING m.sent_at IS NOT NULL
