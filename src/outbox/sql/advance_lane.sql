-- Moves the marks of the lanes that this session holds. `written`: a trigger can keep the mark as it was.
-- $1 lane, $2 low_water, $3 candidate, $4 candidate_tx
UPDATE ONLY outbox.lane l
SET low_water = s.low_water, candidate = s.candidate, candidate_tx = s.candidate_tx::text::xid8
FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS s (lane, low_water, candidate, candidate_tx)
WHERE l.lane = s.lane
RETURNING l.lane,
          l.low_water = s.low_water AND l.candidate IS NOT DISTINCT FROM s.candidate
          AND l.candidate_tx IS NOT DISTINCT FROM s.candidate_tx::text::xid8 AS written
