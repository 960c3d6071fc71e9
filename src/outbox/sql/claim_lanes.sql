-- Locks the requested lanes that no other session holds, in the order of the request.
-- xmin comes from a snapshot that is older than the read of the messages, so it can be too low, but never too high.
-- The lock of a lane's row assigns the transaction id. The statement must read the sequence before that (low_water.rs): the
-- join with the sequence's row comes before every lock.
WITH last AS MATERIALIZED (
    SELECT CASE WHEN is_called THEN last_value ELSE greatest(last_value, -9223372036854775807) - 1 END AS drawn FROM outbox.message_id_seq
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
JOIN ONLY outbox.lane l ON l.lane = wanted.lane
ORDER BY wanted.n
FOR UPDATE OF l SKIP LOCKED
