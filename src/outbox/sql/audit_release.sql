-- Makes records due that would wait forever, because somebody changed the message that they wait for: a message behind a
-- head that is gone, and a record without an unsent message (a claim reads it, removes it and frees its key). A held
-- message waits for its destination, not for another message. A record that becomes due by mistake is only read once more.
-- $1 first page of outbox.waiting, $2 the page after the last
UPDATE outbox.waiting w
SET due_at = clock_timestamp()
WHERE w.ctid >= $1 AND w.ctid < $2 AND w.due_at IS NULL
  AND (w.cause <> 'held'
       AND NOT EXISTS (SELECT FROM outbox.waiting b
                       WHERE b.lane = w.lane AND b.key_hash = w.key_hash AND b.id < w.id
                         AND NOT b.replay AND b.cause <> 'scheduled' OFFSET 0)
       OR NOT EXISTS (SELECT FROM outbox.message m
                      WHERE m.lane = w.lane AND m.id = w.id AND (m.sent_at IS NULL OR w.replay) OFFSET 0))
