-- Deletes the rows that delete_sent.sql did not find: somebody wrote another version of them while the lane was held.
DELETE FROM outbox.message m
USING unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
WHERE m.lane = s.lane AND m.id = s.id
