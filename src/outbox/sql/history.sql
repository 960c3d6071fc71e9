-- A page of operations, the newest first. $1 the id of the last row of the page before, $2 since, $3 rows.
-- A person's text can be long, so the shown part is bounded.
SELECT o.id, coalesce(to_char(o.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), o.at::text) AS at,
       left(o.by_whom, 1000) AS by_whom, o.by_role, o.action, left(o.selection, 4000) AS selection, o.affected,
       left(o.why, 4000) AS why,
       coalesce(to_char(o.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), o.finished_at::text)
           AS finished_at,
       o.message_ids
FROM outbox.operation o
WHERE o.id < $1 AND ($2::timestamptz IS NULL OR o.at >= $2)
ORDER BY o.id DESC
LIMIT $3
