-- The next dead messages, counted by what failed. $1 routes for messages that name no exchange, $2 lane and $3 position
-- before the first, $4 rows to look at. `last_lane`, `last_id`: where the next page begins.
WITH looked AS MATERIALIZED (
    SELECT d.lane, d.id, d.message_id, d.reason, left(d.last_error, 1000) AS error, d.died_at AS at, d.redriven
    FROM outbox.dead d
    WHERE (d.lane, d.id) > ($2::smallint, $3::bigint)
    ORDER BY d.lane, d.id
    LIMIT $4
)
