-- Which of these messages are there. They were not filed; one that is gone cannot be filed. `waits`, `dead`: a record is there.
-- $1 lanes, $2 ids
SELECT m.lane, m.id,
       EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = m.lane AND w.id = m.id AND w.message_id = m.message_id) AS waits,
       EXISTS (SELECT FROM outbox.dead d WHERE d.lane = m.lane AND d.id = m.id AND d.message_id = m.message_id) AS dead
FROM unnest($1::smallint[], $2::bigint[]) AS s (lane, id)
JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
ORDER BY m.id
