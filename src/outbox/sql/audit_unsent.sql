-- Messages that are unsent and have the record of a replay: somebody took their mark back while the replay waited. The record's
-- time is that of the replay, and a replay is no lag, so the message would wait unseen. It becomes an unsent message, as in
-- audit_file.sql. OFFSET 0 keeps the look at the message an index probe.
-- $1 first page of outbox.waiting, $2 the page after the last
WITH unsent AS MATERIALIZED (
    SELECT w.ctid AS place, m.created_at, m.available_at,
           coalesce(m.available_at > statement_timestamp(), false) AS scheduled
    FROM outbox.waiting w
    CROSS JOIN LATERAL (
        SELECT o.created_at, o.available_at FROM outbox.message o
        WHERE o.lane = w.lane AND o.id = w.id AND o.message_id = w.message_id AND o.sent_at IS NULL OFFSET 0
    ) m
    WHERE w.ctid >= $1 AND w.ctid < $2 AND w.replay
)
UPDATE outbox.waiting w
SET replay = false, destination = NULL, failed_probes = NULL,
    cause = CASE WHEN u.scheduled THEN 'scheduled' ELSE 'stranded' END,
    due_at = CASE WHEN u.scheduled THEN u.available_at ELSE statement_timestamp() END,
    due_since = greatest(least(u.created_at, statement_timestamp()), u.available_at)
FROM unsent u
WHERE w.ctid = u.place AND w.replay
