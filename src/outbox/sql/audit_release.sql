-- Makes due what would wait for ever because somebody changed what it waits for: what stands behind nobody any more, and
-- what has no unsent message any more, so that it is read and forgotten, and frees its key. A held message stands behind
-- nobody; its destination lets it go. Who was made due by mistake would only be read once more.
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
