-- What a monitoring system needs to know of an outbox, in one row; none on a standby, so that of a
-- replicated database only the primary answers. Needs the role outbox_monitor (deploy/postgres/roles.sql).
SELECT pg_catalog.current_database() AS datname,
       pending,
       due,
       waiting,
       dead,
       oldest_due_age_seconds,
       pending_is_capped::pg_catalog.int4 AS pending_is_capped
FROM outbox.status
WHERE NOT pg_catalog.pg_is_in_recovery()
