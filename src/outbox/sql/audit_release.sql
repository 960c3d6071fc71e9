-- Makes records due that would wait forever, or too long: a message behind a head that is gone; a time that is further ahead
-- than any back-off, because the clock was set back since; and a record without an unsent message, because somebody changed
-- or deleted the message, or another one is at its position (a claim reads the record, removes it and frees its key). A held
-- message waits for its destination, not for another message. A scheduled message waits for its own time, and the rate of a
-- replay sets the times of its messages. A record that becomes due by mistake is only read once more.
-- $1 first page of outbox.waiting, $2 the page after the last, $3 the longest back-off (s)
UPDATE outbox.waiting w
SET due_at = clock_timestamp()
WHERE w.ctid >= $1 AND w.ctid < $2 AND (w.due_at IS NULL OR w.due_at > statement_timestamp())
  AND (w.due_at IS NULL AND w.cause <> 'held'
       AND NOT EXISTS (SELECT FROM outbox.waiting b
                       WHERE b.lane = w.lane AND b.key_hash = w.key_hash AND b.id < w.id
                         AND NOT b.replay AND b.cause <> 'scheduled' OFFSET 0)
       OR w.cause NOT IN ('scheduled', 'replay') AND w.due_at > statement_timestamp() + $3 * interval '1 second'
       OR NOT EXISTS (SELECT FROM outbox.message m
                      WHERE m.lane = w.lane AND m.id = w.id AND m.message_id = w.message_id
                        AND (m.sent_at IS NULL OR w.replay) OFFSET 0))
