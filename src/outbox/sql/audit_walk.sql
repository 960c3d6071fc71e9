-- Stranded messages on some pages of the table: unsent, at or below their lane's mark, and filed nowhere. A settle moves
-- marks and rows in one transaction, so in one snapshot such a row is one that nobody will look at again.
-- By page and not by index: each page is read once, however its rows are spread over the lanes. $1 first page, $2 the page
-- after the last
WITH unsent AS MATERIALIZED (
    SELECT m.lane, m.id FROM outbox.message m WHERE m.ctid >= $1 AND m.ctid < $2 AND m.sent_at IS NULL
), below AS MATERIALIZED (
    -- Before the looks into the exceptions: a backlog is unsent as well.
    SELECT u.lane, u.id FROM unsent u JOIN outbox.lane l ON l.lane = u.lane WHERE u.id <= l.low_water
)
SELECT b.lane, b.id
FROM below b
WHERE NOT EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = b.lane AND w.id = b.id OFFSET 0)
  AND NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = b.lane AND d.id = b.id OFFSET 0)
