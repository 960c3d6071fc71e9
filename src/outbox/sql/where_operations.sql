-- What people did to a message by hand, among the last operations. $1 message id, $2 operations
SELECT o.action, to_char(o.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at, left(o.by_whom, 100) AS by_whom,
       left(o.why, 200) AS why
FROM (SELECT * FROM outbox.operation o ORDER BY o.id DESC LIMIT $2) o
WHERE $1 = ANY (o.message_ids)
ORDER BY o.id
