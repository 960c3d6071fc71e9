-- Destinations with held messages, each with the reason and error of its first message: one index probe for each
-- destination. $1 the largest number of destinations
WITH RECURSIVE found (destination, failed_probes, reason, last_error, n) AS (
    (SELECT w.destination, coalesce(w.failed_probes, 0), w.reason, w.last_error, 1 FROM outbox.waiting w
      WHERE w.cause = 'held' AND w.due_at IS NULL
      ORDER BY w.destination, w.id LIMIT 1)
    UNION ALL
    SELECT next.destination, next.failed_probes, next.reason, next.last_error, f.n + 1
    FROM found f
    CROSS JOIN LATERAL (
        SELECT w.destination, coalesce(w.failed_probes, 0) AS failed_probes, w.reason, w.last_error FROM outbox.waiting w
        WHERE w.cause = 'held' AND w.due_at IS NULL AND w.destination > f.destination
        ORDER BY w.destination, w.id LIMIT 1
    ) next
    WHERE f.n < $1
)
SELECT destination, failed_probes, reason, last_error FROM found
