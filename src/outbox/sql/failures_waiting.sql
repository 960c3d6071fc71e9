-- As failures_dead.sql, for messages that wait after a failure.
WITH looked AS MATERIALIZED (
    SELECT w.lane, w.id, w.message_id, w.reason, left(w.last_error, 1000) AS error, w.due_since AS at, w.redriven
    FROM outbox.waiting w
    WHERE (w.lane, w.id) > ($2::smallint, $3::bigint)
    ORDER BY w.lane, w.id
    LIMIT $4
)
