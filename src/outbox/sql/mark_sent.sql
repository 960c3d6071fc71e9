-- sent_at is in no index: a heap-only update. By ctid, because the look into the index was three tenths of what a mark cost;
-- a row with another version meanwhile is not found. The place is compared twice: where this waits for somebody who writes
-- the row, PostgreSQL goes on with the new version, and not every minor version compares the place with it by itself.
-- A trigger can count as an update and keep the row as it was (RETURN OLD), so the statement returns whether the mark is there.
-- $1 ctids, $2 ids
UPDATE outbox.message m
SET sent_at = clock_timestamp()
FROM unnest($1::tid[], $2::bigint[]) AS s (place, id)
WHERE m.ctid = s.place AND m.id = s.id AND m.sent_at IS NULL AND (m.ctid = s.place) IS TRUE
RETURNING m.sent_at IS NOT NULL
