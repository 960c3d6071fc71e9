-- As waiting_list_oldest.sql, by lane and position: for replays, which no index has.
WITH looked AS MATERIALIZED (
    SELECT w.* FROM outbox.waiting w
    WHERE (w.lane, w.id) > ($13::smallint, $14::bigint) AND $12::text IS NOT NULL
      AND (cardinality($6::uuid[]) = 0 OR w.message_id = ANY ($6))
    ORDER BY w.lane, w.id
    LIMIT $11
)
