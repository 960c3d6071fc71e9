-- The readings of an outbox for a monitoring system, in one row. A standby returns no row, so that only the primary of a
-- replicated database answers. The query needs the role outbox_monitor (deploy/postgres/roles.sql).
SELECT pg_catalog.current_database() AS datname,
       pending,
       due,
       waiting,
       dead,
       oldest_due_age_seconds,
       pending_is_capped::pg_catalog.int4 AS pending_is_capped
FROM outbox.status
WHERE NOT pg_catalog.pg_is_in_recovery()
