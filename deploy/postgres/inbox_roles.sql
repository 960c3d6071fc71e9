-- Privileges for the roles that meet an inbox. Run it as the owner of schema inbox (the CREATE ROLE statements need
-- CREATEROLE; leave them out where roles are managed elsewhere), then
--   GRANT inbox_consumer TO my_service;   GRANT inbox_monitor TO my_exporter;
-- It may be run again.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['inbox_consumer', 'inbox_monitor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
END
$$;

-- A consumer claims, completes, counts failures and prunes; it cannot change what names an operation.
GRANT USAGE ON SCHEMA inbox TO inbox_consumer;
GRANT SELECT, INSERT, DELETE, UPDATE (state, result, result_type, recorded_at) ON inbox.message TO inbox_consumer;
GRANT SELECT, INSERT, UPDATE (position, applied_at) ON inbox.entity TO inbox_consumer;
GRANT SELECT, INSERT, DELETE, UPDATE (attempts, last_error, last_at) ON inbox.attempt TO inbox_consumer;
GRANT SELECT ON inbox.in_doubt, inbox.migration TO inbox_consumer;

-- Monitoring sees counts, never an operation.
GRANT USAGE ON SCHEMA inbox TO inbox_monitor;
GRANT SELECT ON inbox.status, inbox.migration TO inbox_monitor;
GRANT EXECUTE ON FUNCTION inbox.measure() TO inbox_monitor;
