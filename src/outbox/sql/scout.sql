-- Which of these lanes have work, without taking a lock, and in how many milliseconds the next waiting message falls due.
-- A mark above every position that was drawn is work, too: a claim takes it back.
-- The sequence comes after the messages, as in a TRUNCATE ... RESTART IDENTITY: in the other order both could wait for
-- each other, and it is the TRUNCATE that the server would end.
-- $1 lanes
SELECT l.lane,
       current_setting('transaction_read_only')::boolean AS read_only,
       EXISTS (
           SELECT FROM outbox.message m
           WHERE m.lane = l.lane AND m.id > l.low_water AND m.sent_at IS NULL
             AND NOT EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = m.lane AND w.id = m.id OFFSET 0)
             AND NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = m.lane AND d.id = m.id OFFSET 0)
       ) OR greatest(l.low_water, l.candidate) > (
           SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END FROM outbox.message_id_seq s
       ) AS fresh,
       (SELECT ceil(extract(epoch FROM min(w.due_at) - clock_timestamp()) * 1000)::bigint
        FROM outbox.waiting w WHERE w.lane = l.lane AND w.due_at IS NOT NULL AND w.due_at < 'infinity') AS due_in_ms
FROM outbox.lane l
WHERE l.lane = ANY ($1::smallint[])
