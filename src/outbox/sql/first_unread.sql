-- Finds the message that a claim of this lane reads first, and its place. It reads no column that may be stored outside of
-- its row. $1 lane, $2 its mark, $3 to $5 what the claim passes over, as $7 to $9 of read.sql
SELECT id, place, tx FROM (
    (SELECT w.id, m.ctid AS place, m.tx, 0 AS turn
      FROM outbox.waiting w
      LEFT JOIN outbox.message m ON m.lane = w.lane AND m.id = w.id
      WHERE w.lane = $1 AND w.due_at <= statement_timestamp()
        AND (w.id = ANY ($3::bigint[])) IS NOT TRUE
      ORDER BY w.due_at LIMIT 1)
    UNION ALL
    (SELECT m.id, m.ctid AS place, m.tx, 1 AS turn FROM outbox.message m
      WHERE m.lane = $1 AND m.id > $2 AND m.sent_at IS NULL
        AND (m.id = ANY ($4::bigint[])) IS NOT TRUE
        AND (cardinality($5::bigint[]) = 0
             OR (outbox.key_hash(m.aggregate_type, m.aggregate_id) = ANY ($5::bigint[])) IS NOT TRUE)
        AND NOT EXISTS (SELECT FROM outbox.waiting w
                        WHERE w.lane = m.lane AND w.id = m.id AND w.message_id = m.message_id OFFSET 0)
        AND NOT EXISTS (SELECT FROM outbox.dead d
                        WHERE d.lane = m.lane AND d.id = m.id AND d.message_id = m.message_id OFFSET 0)
      ORDER BY m.id LIMIT 1)
) first
ORDER BY turn
LIMIT 1
