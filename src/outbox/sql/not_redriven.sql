-- Of messages that were to be redriven: how many have no record, though they were not sent, and the first of them. And how
-- many were sent after they died. $1 lane, $2 id, $3 replay
SELECT count(*) FILTER (WHERE to_redrive AND NOT waits) AS unfiled, min(id) FILTER (WHERE to_redrive AND NOT waits) AS first,
       count(*) FILTER (WHERE NOT to_redrive) AS sent
FROM (
    SELECT m.id, m.sent_at IS NULL OR s.replay AS to_redrive,
           EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = m.lane AND w.id = m.id AND w.message_id = m.message_id) AS waits
    FROM unnest($1::smallint[], $2::bigint[], $3::boolean[]) AS s (lane, id, replay)
    JOIN outbox.message m ON m.lane = s.lane AND m.id = s.id
) asked
