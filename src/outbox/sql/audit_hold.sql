-- Locks the lanes that no other session holds. $1 lanes
SELECT l.lane FROM ONLY outbox.lane l WHERE l.lane = ANY ($1::smallint[]) ORDER BY l.lane FOR UPDATE SKIP LOCKED
