-- Corrects times of records. A scheduled message follows its available_at, which somebody may have changed with triggers off.
-- Any other message is due, so a due_since that lies ahead was written by a clock that was set back since; it would hide the
-- lag. $1 first page of outbox.waiting, $2 the page after the last
UPDATE outbox.waiting w
SET due_at = CASE WHEN w.cause = 'scheduled' THEN coalesce((
                           SELECT m.available_at FROM outbox.message m
                           WHERE m.lane = w.lane AND m.id = w.id AND m.message_id = w.message_id), clock_timestamp())
                  ELSE w.due_at END,
    due_since = CASE WHEN w.cause = 'scheduled' THEN coalesce((
                           SELECT greatest(m.created_at, m.available_at) FROM outbox.message m
                           WHERE m.lane = w.lane AND m.id = w.id AND m.message_id = w.message_id), w.due_since)
                     ELSE clock_timestamp() END
WHERE w.ctid >= $1 AND w.ctid < $2 AND NOT w.replay
  AND (w.cause <> 'scheduled' AND w.due_since > statement_timestamp()
       OR w.cause = 'scheduled' AND w.due_at > statement_timestamp()
          AND EXISTS (SELECT FROM outbox.message m
                      WHERE m.lane = w.lane AND m.id = w.id AND m.message_id = w.message_id
                        AND m.available_at IS DISTINCT FROM w.due_at OFFSET 0))
