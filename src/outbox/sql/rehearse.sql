-- Marks messages, to see whether they can be marked; the caller rolls the marks back. The result leaves out rows that another
-- session has locked, and rows that a trigger keeps unchanged. $1 lanes, $2 ids
WITH free AS (
    SELECT m.lane, m.id
    FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
    JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
    WHERE m.sent_at IS NULL
    FOR NO KEY UPDATE OF m SKIP LOCKED
)
UPDATE outbox.message m
SET sent_at = clock_timestamp()
FROM free f
WHERE m.lane = f.lane AND m.id = f.id
RETURNING m.lane, m.id
