-- Makes waiting messages of a lane due; the caller holds the lane. A held message becomes a probe of its destination, because a
-- relay would hold it again. Returns the records that are due now: a trigger can keep a record as it was. $1 lane, $2 ids
UPDATE outbox.waiting w
SET due_at = clock_timestamp(), cause = CASE WHEN w.cause = 'held' THEN 'probe' ELSE w.cause END
FROM unnest($2::bigint[]) AS s (id)
WHERE w.lane = $1 AND w.id = s.id
RETURNING w.id, coalesce(w.due_at <= clock_timestamp(), false) AND w.cause <> 'held' AS written
