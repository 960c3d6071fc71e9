-- What a monitoring system needs to know of an inbox, in one row; none on a standby, so that of a
-- replicated database only the primary answers. Needs the role inbox_monitor (deploy/postgres/inbox_roles.sql).
SELECT pg_catalog.current_database() AS datname,
       in_doubt,
       oldest_in_doubt_age_seconds,
       failing
FROM inbox.status
WHERE NOT pg_catalog.pg_is_in_recovery()
