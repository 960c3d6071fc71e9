-- What a monitoring system needs to know of an outbox, in one row; none on a standby, so that of a
-- replicated database only the primary answers. Needs USAGE on schema outbox and SELECT on outbox.status.
SELECT current_database() AS datname,
       pending,
       due,
       waiting,
       dead,
       coalesce(oldest_due_age_seconds, 0) AS oldest_due_age_seconds,
       pending_is_capped::int AS pending_is_capped
FROM outbox.status
WHERE NOT pg_is_in_recovery()
