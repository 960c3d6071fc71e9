-- Locks the lanes asked for that nobody else holds, in the order asked for.
-- xmin comes from a snapshot taken before the read of the messages, so it can only be too low, never too high.
SELECT l.lane,
       l.low_water,
       l.candidate,
       l.candidate_tx::text::bigint AS candidate_tx,
       pg_current_xact_id()::text::bigint AS own_tx,
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin,
       clock_timestamp() AS now
FROM unnest($1::smallint[]) WITH ORDINALITY AS wanted (lane, n)
JOIN outbox.lane l ON l.lane = wanted.lane
ORDER BY wanted.n
FOR UPDATE OF l SKIP LOCKED
