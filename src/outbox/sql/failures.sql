-- OFFSET 0: a probe of the index for each record, whatever the statistics say.
SELECT outbox.failure_group(g.reason, g.exchange, g.routing_key, g.aggregate_type, g.event_type, g.error) AS failure_group,
       g.reason, g.exchange, outbox.without_ids(g.routing_key) AS routing_key, g.aggregate_type, g.event_type, g.route,
       outbox.without_ids(g.error) AS error, g.n, g.again,
       extract(epoch FROM CASE WHEN isfinite(g.first) THEN g.first END)::float8 AS first,
       extract(epoch FROM CASE WHEN isfinite(g.last) THEN g.last END)::float8 AS last, g.examples,
       last.lane AS last_lane, last.id AS last_id
FROM (SELECT l.lane, l.id FROM looked l ORDER BY l.lane DESC, l.id DESC LIMIT 1) last
LEFT JOIN (
    SELECT l.reason, m.exchange, m.routing_key, m.aggregate_type, m.event_type, r.n AS route, l.error, count(*) AS n,
           count(*) FILTER (WHERE l.redriven > 0) AS again, min(l.at) AS first, max(l.at) AS last,
           (array_agg(l.message_id ORDER BY l.at DESC))[1:3] AS examples
    FROM looked l
    LEFT JOIN LATERAL (
        SELECT left(o.exchange, 256) AS exchange, left(o.routing_key, 256) AS routing_key,
               left(o.aggregate_type, 256) AS aggregate_type, left(o.event_type, 256) AS event_type
        FROM outbox.message o WHERE o.lane = l.lane AND o.id = l.id AND o.message_id = l.message_id OFFSET 0
    ) m ON true
    LEFT JOIN LATERAL (
        SELECT u.n FROM unnest($1::text[]) WITH ORDINALITY AS u (rule, n)
        WHERE m.aggregate_type LIKE split_part(u.rule, chr(31), 1) AND m.event_type LIKE split_part(u.rule, chr(31), 2)
        ORDER BY u.n LIMIT 1
    ) r ON true
    WHERE l.reason IS NOT NULL
    GROUP BY 1, 2, 3, 4, 5, 6, 7
) g ON true
