-- Finds stranded messages on some pages of the table: unsent, at or below their lane's mark, and filed nowhere. A settle
-- moves marks and rows in one transaction. So if one snapshot shows such a row, no claim will read it.
-- The walk goes by page and not by index: it reads each page once, however the rows are spread over the lanes.
-- $1 first page, $2 the page after the last
WITH unsent AS MATERIALIZED (
    SELECT m.lane, m.id, m.message_id FROM outbox.message m WHERE m.ctid >= $1 AND m.ctid < $2 AND m.sent_at IS NULL
), below AS MATERIALIZED (
    -- This comes before the probes of waiting and dead, because a backlog is unsent as well.
    SELECT u.lane, u.id, u.message_id FROM unsent u JOIN ONLY outbox.lane l ON l.lane = u.lane WHERE u.id <= l.low_water
)
SELECT b.lane, b.id
FROM below b
WHERE NOT EXISTS (SELECT FROM outbox.waiting w
                  WHERE w.lane = b.lane AND w.id = b.id AND w.message_id = b.message_id OFFSET 0)
  AND NOT EXISTS (SELECT FROM outbox.dead d
                  WHERE d.lane = b.lane AND d.id = b.id AND d.message_id = b.message_id OFFSET 0)
