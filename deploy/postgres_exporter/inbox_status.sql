-- The readings of an inbox for a monitoring system, in one row. A standby returns no row, so that only the primary of a
-- replicated database answers. The query needs the role inbox_monitor (deploy/postgres/inbox_roles.sql).
SELECT pg_catalog.current_database() AS datname,
       in_doubt,
       oldest_in_doubt_age_seconds,
       failing
FROM inbox.status
WHERE NOT pg_catalog.pg_is_in_recovery()
