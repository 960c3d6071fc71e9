-- Finds the lanes that have work, without a lock, and the milliseconds until the next waiting message falls due.
-- A mark above every drawn position is work, too: a claim takes it back.
-- The sequence comes after the messages, as in TRUNCATE ... RESTART IDENTITY. In the other order both could deadlock, and
-- the server would end the TRUNCATE.
-- $1 lanes
SELECT l.lane,
       current_setting('transaction_read_only')::boolean AS read_only,
       EXISTS (
           SELECT FROM outbox.message m
           WHERE m.lane = l.lane AND m.id > l.low_water AND m.sent_at IS NULL
             AND NOT EXISTS (SELECT FROM outbox.waiting w
                             WHERE w.lane = m.lane AND w.id = m.id AND w.message_id = m.message_id OFFSET 0)
             AND NOT EXISTS (SELECT FROM outbox.dead d
                             WHERE d.lane = m.lane AND d.id = m.id AND d.message_id = m.message_id OFFSET 0)
       ) OR greatest(l.low_water, l.candidate) > (
           SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END FROM outbox.message_id_seq s
       ) AS fresh,
       -- An infinite time has no distance: -infinity is long past, and infinity never comes.
       (SELECT ceil(extract(epoch FROM greatest(w.due_at, '1970-01-01 UTC'::timestamptz) - clock_timestamp()) * 1000)::bigint
        FROM outbox.waiting w WHERE w.lane = l.lane AND w.due_at IS NOT NULL AND w.due_at < 'infinity'
        ORDER BY w.due_at LIMIT 1) AS due_in_ms
FROM ONLY outbox.lane l
WHERE l.lane = ANY ($1::smallint[])
