-- Privileges for the roles of an inbox. Run the script as the owner of schema inbox (CREATE ROLE needs CREATEROLE; if roles
-- are managed elsewhere, make them first), then
--   GRANT inbox_consumer TO my_service;   GRANT inbox_monitor TO my_exporter;
-- You may run it again. It is one statement, so it does all or nothing.
--
-- Roles belong to the whole server: see roles.sql. If a server has several inboxes, give each of them roles of its own:
--   outboxd sql --schema inbox --roles --consumer payments_consumer --monitor payments_monitor
-- If one service or exporter is meant to work in all of them, say so:
--   SET outboxd.shared_roles = on;

DO $$
DECLARE
    role      pg_catalog.text;
    elsewhere pg_catalog.text;
    path      CONSTANT pg_catalog.text := pg_catalog.current_setting('search_path');
BEGIN
    -- No other role's function or operator can replace one of PostgreSQL's (see the migration).
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

    FOREACH role IN ARRAY ARRAY['inbox_consumer', 'inbox_monitor'] LOOP
        SELECT string_agg(DISTINCT d.datname, ', ') INTO elsewhere
        FROM pg_roles r
        JOIN pg_shdepend s ON s.refclassid = 'pg_authid'::regclass AND s.refobjid = r.oid
        JOIN pg_database d ON d.oid = s.dbid
        WHERE r.rolname = role AND NOT r.rolcanlogin AND d.datname <> current_database();
        IF elsewhere IS NOT NULL AND coalesce(current_setting('outboxd.shared_roles', true), '') <> 'on' THEN
            RAISE EXCEPTION 'role % has rights in another database of this server (%): its members would have them here, too',
                role, elsewhere
                USING HINT = 'Give this database roles of its own: outboxd sql --schema inbox --roles --consumer NAME '
                             '--monitor NAME. If they are to work in both: SET outboxd.shared_roles = on.';
        END IF;
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
    END LOOP;

    -- A consumer claims, completes, counts failures and prunes; it cannot change an operation's key.
    GRANT USAGE ON SCHEMA inbox TO inbox_consumer;
    GRANT SELECT, INSERT, DELETE, UPDATE (state, result, result_type, recorded_at) ON inbox.message TO inbox_consumer;
    GRANT SELECT, INSERT, UPDATE (position, applied_at) ON inbox.entity TO inbox_consumer;
    GRANT SELECT, INSERT, DELETE, UPDATE (attempts, last_error, last_at) ON inbox.attempt TO inbox_consumer;
    GRANT SELECT ON inbox.in_doubt, inbox.migration TO inbox_consumer;

    -- Monitoring sees counts, never an operation.
    GRANT USAGE ON SCHEMA inbox TO inbox_monitor;
    GRANT SELECT ON inbox.status, inbox.migration TO inbox_monitor;
    GRANT EXECUTE ON FUNCTION inbox.measure() TO inbox_monitor;

    PERFORM pg_catalog.set_config('search_path', path, true);
END
$$;
