-- The position at a time: `below` is the lowest known one with a message written at or after it, and no message of that time is
-- below `above`. The two are at most 256 positions apart where messages are as dense, and otherwise on both sides of a gap. created_at grows with the position, but for clocks that were set and for transactions of one moment.
-- This is a binary search in one lane after the other, each within what the lanes before it have left: a lane's messages can
-- be far apart, and all messages can be in one lane. It asks one lane at a time, because a probe of another lane reads other
-- pages. It takes the median of three rows, also beyond what is left, so that one row with a wrong time does not lead astray.
-- It computes in numeric: the last position may be the largest bigint, and the distance of two may be larger.
-- $1 lanes, $2 the time, $3 the first position, $4 the last position
WITH RECURSIVE step AS (
    SELECT 1 AS n, 1 AS lane_no, $3::bigint::numeric AS low, $4::bigint::numeric + 1 AS high,
           $3::bigint::numeric AS above, $4::bigint::numeric + 1 AS below
    UNION ALL
    SELECT s.n + 1,
           CASE WHEN s.ends THEN s.lane_no + 1 ELSE s.lane_no END,
           CASE WHEN s.ends THEN s.above WHEN p.before THEN p.lowest + 1 ELSE s.low END,
           CASE WHEN s.ends THEN s.below WHEN p.before THEN s.high ELSE s.middle END,
           CASE WHEN p.before THEN greatest(s.above, p.lowest) ELSE s.above END,
           CASE WHEN NOT p.before THEN least(s.below, p.highest) ELSE s.below END
    FROM (SELECT step.*, step.low + div(step.high - step.low, 2) AS middle, step.low >= step.high AS ends FROM step) s
    CROSS JOIN LATERAL (
        SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY near.created_at) < $2::timestamptz AS before,
               min(near.id)::numeric AS lowest, max(near.id)::numeric AS highest
        FROM (
            SELECT m.id, m.created_at
            FROM outbox.message m
            WHERE NOT s.ends AND m.lane = ($1::smallint[])[s.lane_no] AND m.id >= least(s.middle, $4)::bigint AND m.id <= $4
            ORDER BY m.id
            LIMIT 3
        ) near
    ) p
    -- 65 steps in each of 64 lanes halve the largest distance.
    WHERE s.n < 5000 AND s.below - s.above > 256 AND s.lane_no <= cardinality($1::smallint[])
)
SELECT above::bigint AS above, least(below, 9223372036854775807)::bigint AS below FROM step ORDER BY n DESC LIMIT 1
