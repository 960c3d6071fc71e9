-- Messages with this id among the next rows of a lane, backwards. $1 message id, $2 lane, $3 not above this position,
-- $4 not below this one, $5 rows
WITH step AS MATERIALIZED (
    SELECT m.id, m.message_id FROM outbox.message m
    WHERE m.lane = $2 AND m.id <= $3 AND m.id >= $4 ORDER BY m.id DESC LIMIT $5
)
SELECT count(*) AS looked, min(id) AS lowest,
       (coalesce(array_agg(id ORDER BY id DESC) FILTER (WHERE message_id = $1), '{}'))[1:100] AS ids
FROM step
