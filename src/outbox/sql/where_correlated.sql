-- Messages with this correlation id at some positions of all lanes. ->> fails at an escape that is no character of the
-- database's encoding (\u0000), and one such row would fail the search. So headers with escapes are compared as text, with a
-- pattern of every spelling, and the program reads those that may fit. The relay refuses longer headers without reading them,
-- and so does this.
-- $1 correlation id, $2 pattern of its member in JSON, $3 first position, $4 last position
WITH here AS MATERIALIZED (
    SELECT m.lane, m.id,
           CASE WHEN m.headers IS NULL OR m.headers_size > 131072 THEN 'no'
                WHEN strpos(m.headers::text, '\u') > 0
                THEN CASE WHEN m.headers::text ~ $2 THEN 'maybe' ELSE 'no' END
                WHEN m.headers ->> 'correlation_id' = $1 THEN 'yes'
                ELSE 'no' END AS fits
    FROM generate_series(0, 63) AS l (lane)
    CROSS JOIN LATERAL (
        SELECT m.lane, m.id, m.headers, m.headers_size
        FROM outbox.message m WHERE m.lane = l.lane::smallint AND m.id BETWEEN $3 AND $4 OFFSET 0
    ) m
), all_of_them AS (
    SELECT count(*) AS looked FROM here
), hit AS (
    SELECT h.lane, h.id, CASE WHEN h.fits = 'maybe' THEN m.headers::text END AS headers
    FROM here h
    LEFT JOIN outbox.message m ON h.fits = 'maybe' AND m.lane = h.lane AND m.id = h.id
    WHERE h.fits <> 'no'
    ORDER BY h.id DESC
    LIMIT 101
)
SELECT a.looked, h.lane, h.id, h.headers FROM all_of_them a LEFT JOIN hit h ON true ORDER BY h.id DESC
