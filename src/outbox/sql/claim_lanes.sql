-- Locks the lanes asked for that nobody else holds, in the order asked for.
-- xmin comes from a snapshot taken before the read of the messages, so it can only be too low, never too high.
-- Locking a lane's row assigns the transaction id. The sequence must be read before that (low_water.rs): every row that
-- is locked has come through the join, and none does without the sequence's.
WITH last AS MATERIALIZED (
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS drawn FROM outbox.message_id_seq
)
SELECT l.lane,
       l.low_water,
       l.candidate,
       l.candidate_tx::text::bigint AS candidate_tx,
       last.drawn,
       pg_current_xact_id()::text::bigint AS own_tx,
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin,
       clock_timestamp() AS now
FROM last
CROSS JOIN unnest($1::smallint[]) WITH ORDINALITY AS wanted (lane, n)
JOIN outbox.lane l ON l.lane = wanted.lane
ORDER BY wanted.n
FOR UPDATE OF l SKIP LOCKED
