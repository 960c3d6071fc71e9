-- Messages of a key in its lane: what is not sent, the oldest first, and the last sent ones. Every part reads a bounded number
-- of rows, and says when there are more. $1 aggregate type, $2 aggregate id, $3 rows to read, $4 sent messages to show
WITH home AS MATERIALIZED (
    SELECT k.lane, k.key_hash, coalesce(l.low_water, 0) AS low_water
    FROM (SELECT (outbox.key_hash($1, $2) & 63)::smallint AS lane, outbox.key_hash($1, $2) AS key_hash) k
    LEFT JOIN ONLY outbox.lane l ON l.lane = k.lane
), above AS MATERIALIZED (
    SELECT m.id, m.sent_at, m.aggregate_type = $1 AND m.aggregate_id = $2 AS fits
    FROM outbox.message m
    WHERE m.lane = (SELECT lane FROM home) AND m.id > (SELECT low_water FROM home) ORDER BY m.id LIMIT $3
), below AS MATERIALIZED (
    SELECT m.id, m.sent_at, m.aggregate_type = $1 AND m.aggregate_id = $2 AS fits
    FROM outbox.message m
    WHERE m.lane = (SELECT lane FROM home) AND m.id <= (SELECT low_water FROM home) ORDER BY m.id DESC LIMIT $3
), waiting AS MATERIALIZED (
    SELECT w.id, w.message_id, w.key_hash FROM outbox.waiting w WHERE w.lane = (SELECT lane FROM home) ORDER BY w.id LIMIT $3
), blocking AS MATERIALIZED (
    SELECT w.id, w.message_id FROM outbox.waiting w
    WHERE w.lane = (SELECT lane FROM home) AND w.key_hash = (SELECT key_hash FROM home)
      AND NOT w.replay AND w.cause <> 'scheduled'
    ORDER BY w.id LIMIT $3
), dead AS MATERIALIZED (
    SELECT d.id, d.message_id FROM outbox.dead d WHERE d.lane = (SELECT lane FROM home) ORDER BY d.id LIMIT $3
), filed AS (
    SELECT m.id
    FROM (SELECT id, message_id FROM waiting WHERE key_hash = (SELECT key_hash FROM home)
          UNION SELECT id, message_id FROM blocking
          UNION SELECT id, message_id FROM dead) f
    JOIN outbox.message m ON m.lane = (SELECT lane FROM home) AND m.id = f.id AND m.message_id = f.message_id
    WHERE m.aggregate_type = $1 AND m.aggregate_id = $2
), open AS (
    SELECT id FROM filed
    UNION SELECT id FROM above WHERE fits AND sent_at IS NULL
    UNION SELECT id FROM below WHERE fits AND sent_at IS NULL
), sent AS (
    SELECT s.id FROM (SELECT * FROM above UNION ALL SELECT * FROM below) s
    WHERE s.fits AND s.sent_at IS NOT NULL AND s.id NOT IN (SELECT id FROM filed)
    ORDER BY s.id DESC LIMIT $4
)
SELECT (SELECT lane FROM home) AS lane,
       ARRAY(SELECT id FROM open ORDER BY id LIMIT $3) AS open,
       ARRAY(SELECT id FROM sent ORDER BY id) AS sent,
       (SELECT count(*) FROM above) >= $3 OR (SELECT count(*) FROM waiting) >= $3
           OR (SELECT count(*) FROM blocking) >= $3 OR (SELECT count(*) FROM dead) >= $3
           -- What is stranded, and not yet found by the audit, is unsent below the mark.
           OR (SELECT count(*) FROM below) >= $3 AS open_is_cut,
       (SELECT count(*) FROM below) >= $3 AS sent_is_cut
