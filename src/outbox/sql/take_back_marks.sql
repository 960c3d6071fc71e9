-- Takes back marks that lie above every drawn position: no claim would read new messages below them. The statement reads the
-- sequence again, because another relay may have moved a mark since the claim read it. $1 lanes that this session holds
WITH last AS MATERIALIZED (
    SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS drawn FROM outbox.message_id_seq
)
UPDATE outbox.lane l
SET low_water = CASE WHEN l.low_water > last.drawn THEN 0 ELSE l.low_water END, candidate = NULL, candidate_tx = NULL
FROM last
WHERE l.lane = ANY ($1::smallint[]) AND greatest(l.low_water, l.candidate) > last.drawn
RETURNING l.lane, last.drawn
