-- Messages with this id at some positions of some lanes: positions are of all lanes together, so the window's width bounds
-- what is read. $1 message id, $2 lanes, $3 first position, $4 last position
SELECT count(*) AS looked,
       (coalesce(array_agg(m.lane ORDER BY m.id DESC) FILTER (WHERE m.message_id = $1), '{}'))[1:100] AS lanes,
       (coalesce(array_agg(m.id ORDER BY m.id DESC) FILTER (WHERE m.message_id = $1), '{}'))[1:100] AS ids
FROM unnest($2::smallint[]) AS l (lane)
CROSS JOIN LATERAL (
    SELECT m.lane, m.id, m.message_id FROM outbox.message m WHERE m.lane = l.lane AND m.id BETWEEN $3 AND $4 OFFSET 0
) m
