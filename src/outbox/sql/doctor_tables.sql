-- Live and dead rows of the outbox's tables, as the server's statistics count them; no row is read.
SELECT s.relname::text AS name, s.n_live_tup AS live, s.n_dead_tup AS dead,
       extract(epoch FROM clock_timestamp() - greatest(s.last_vacuum, s.last_autovacuum))::float8 AS vacuumed_seconds_ago
FROM pg_stat_all_tables s
WHERE s.schemaname = 'outbox'
ORDER BY s.n_dead_tup DESC
