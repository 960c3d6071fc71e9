-- Files the next sent messages of a lane for another publish, spaced by the rate.
-- $1 lane, $2 cursor, $3 rows looked at, $4 since, $5 until, $6 aggregate type, $7 aggregate id, $8 event type,
-- $9 message ids, $10 first due in (s), $11 seconds between two, $12 dry run
WITH step AS (
    SELECT m.* FROM outbox.message m WHERE m.lane = $1 AND m.id > $2 ORDER BY m.id LIMIT $3
), chosen AS (
    SELECT s.*, row_number() OVER (ORDER BY s.id) - 1 AS n
    FROM step s
    WHERE s.sent_at IS NOT NULL
      AND ($4::timestamptz IS NULL OR s.created_at >= $4)
      AND ($5::timestamptz IS NULL OR s.created_at < $5)
      AND ($6::text IS NULL OR s.aggregate_type = $6)
      AND ($7::text IS NULL OR s.aggregate_id = $7)
      AND ($8::text IS NULL OR s.event_type = $8)
      AND (cardinality($9::uuid[]) = 0 OR s.message_id = ANY ($9))
      AND NOT EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = s.lane AND w.id = s.id OFFSET 0)
      AND NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = s.lane AND d.id = s.id OFFSET 0)
), filed AS (
    INSERT INTO outbox.waiting (lane, id, message_id, key_hash, cause, replay, due_at, due_since)
    SELECT c.lane, c.id, c.message_id, outbox.key_hash(c.aggregate_type, c.aggregate_id), 'replay', true,
           clock_timestamp() + ($10 + c.n * $11) * interval '1 second', clock_timestamp()
    FROM chosen c
    WHERE NOT $12::boolean
    RETURNING 1
)
SELECT (SELECT max(id) FROM step) AS cursor,
       (SELECT count(*) FROM step) AS looked,
       (SELECT count(*) FROM chosen) AS chosen,
       (SELECT count(*) FROM filed) AS filed,
       (SELECT coalesce(array_agg(message_id ORDER BY n), '{}') FROM chosen
         WHERE n < 1000 OR cardinality($9::uuid[]) > 0) AS message_ids
