-- Which of these rows are there as they were. $1 ctids, $2 ids
SELECT m.id
FROM unnest($1::tid[], $2::bigint[]) AS s (place, id)
JOIN outbox.message m ON m.ctid = s.place AND m.id = s.id
ORDER BY m.id
