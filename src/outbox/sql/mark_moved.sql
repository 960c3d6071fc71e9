-- Marks the rows that mark_sent.sql did not find: somebody wrote another version of them while the lane was held.
UPDATE outbox.message m
SET sent_at = clock_timestamp()
FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
WHERE m.lane = s.lane AND m.id = s.id AND m.sent_at IS NULL
