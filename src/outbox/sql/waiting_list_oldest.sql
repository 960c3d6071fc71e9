-- A page of waiting messages, those first that wait longest. $1 reasons, $2 aggregate type, $3 aggregate id, $4 event type,
-- $5 waiting for at least (s), $6 message ids, $7 exchange, $8 routes for messages that name no exchange, $9 group, $10 states,
-- $11 rows to look at, $12 due since, $13 lane and $14 position of the last row of the page before; for the first page
-- '-infinity', -1, 0.
WITH looked AS MATERIALIZED (
    SELECT w.* FROM outbox.waiting w
    WHERE NOT w.replay AND (w.due_since, w.lane, w.id) > ($12::text::timestamptz, $13::smallint, $14::bigint)
      AND (cardinality($6::uuid[]) = 0 OR w.message_id = ANY ($6))
    ORDER BY w.due_since, w.lane, w.id
    LIMIT $11
)
