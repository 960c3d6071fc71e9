-- Takes back marks that lie above every drawn position: no claim would read new messages below them. The statement reads the
-- sequence again, because another relay may have moved a mark since the claim read it. `written`: a trigger can keep a mark as
-- it was. $1 lanes that this session holds
WITH last AS MATERIALIZED (
    SELECT CASE WHEN is_called THEN last_value ELSE greatest(last_value, -9223372036854775807) - 1 END AS drawn FROM outbox.message_id_seq
), above AS MATERIALIZED (
    SELECT l.lane, last.drawn
    FROM ONLY outbox.lane l CROSS JOIN last
    WHERE l.lane = ANY ($1::smallint[]) AND greatest(l.low_water, l.candidate) > last.drawn
), taken_back AS (
    UPDATE ONLY outbox.lane l
    SET low_water = CASE WHEN l.low_water > a.drawn THEN least(0, a.drawn) ELSE l.low_water END, candidate = NULL, candidate_tx = NULL
    FROM above a
    WHERE l.lane = a.lane
    RETURNING l.lane, l.low_water <= a.drawn AND l.candidate IS NULL AS written
)
SELECT a.lane, a.drawn, coalesce(t.written, false) AS written FROM above a LEFT JOIN taken_back t ON t.lane = a.lane
