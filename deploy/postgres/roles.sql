-- Privileges for the three kinds of roles of an outbox. Run the script as the owner of schema outbox (CREATE ROLE needs
-- CREATEROLE; if roles are managed elsewhere, make them first), then
--   GRANT outbox_producer TO my_service;   GRANT outbox_relay TO my_relay;   GRANT outbox_monitor TO my_exporter;
-- You may run it again. It is one statement, so it does all or nothing.
--
-- PostgreSQL's roles belong to the whole server, not to a database. A member of outbox_producer writes into every
-- outbox of the server that granted rights to outbox_producer, for whichever outbox the membership was meant. So the
-- script refuses a role for members (NOLOGIN) that already has rights in another database. If a server has several
-- outboxes, give each of them roles of its own, or grant to the login roles directly:
--   outboxd sql --roles --producer shop_producer --relay shop_relay --monitor shop_monitor
-- If one service, relay or exporter is meant to work in all of them, say so:
--   SET outboxd.shared_roles = on;

DO $$
DECLARE
    role      pg_catalog.text;
    elsewhere pg_catalog.text;
    path      CONSTANT pg_catalog.text := pg_catalog.current_setting('search_path');
BEGIN
    -- No other role's function or operator can replace one of PostgreSQL's (see the migration).
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

    FOREACH role IN ARRAY ARRAY['outbox_producer', 'outbox_relay', 'outbox_monitor'] LOOP
        SELECT string_agg(DISTINCT d.datname, ', ') INTO elsewhere
        FROM pg_roles r
        JOIN pg_shdepend s ON s.refclassid = 'pg_authid'::regclass AND s.refobjid = r.oid
        JOIN pg_database d ON d.oid = s.dbid
        WHERE r.rolname = role AND NOT r.rolcanlogin AND d.datname <> current_database();
        IF elsewhere IS NOT NULL AND coalesce(current_setting('outboxd.shared_roles', true), '') <> 'on' THEN
            RAISE EXCEPTION 'role % has rights in another database of this server (%): its members would have them here, too',
                role, elsewhere
                USING HINT = 'Give this database roles of its own: outboxd sql --roles --producer NAME --relay NAME '
                             '--monitor NAME. If they are to work in both: SET outboxd.shared_roles = on.';
        END IF;
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
    END LOOP;

    -- A producer inserts events. It cannot read the outbox, and it cannot forge a position, a time or an outcome.
    GRANT USAGE ON SCHEMA outbox TO outbox_producer;
    GRANT INSERT (message_id, aggregate_type, aggregate_id, event_type, payload, binary_payload, content_type,
                  headers, exchange, routing_key, available_at)
        ON outbox.message TO outbox_producer;
    -- The default of message_id.
    GRANT EXECUTE ON FUNCTION outbox.uuid_v7() TO outbox_producer;
    -- Debezium's producers delete what they have inserted, by its id; the view keeps the event.
    GRANT INSERT, SELECT (id), DELETE ON outbox.debezium TO outbox_producer;

    -- A relay reads messages and writes outcomes. It cannot write an event, and it cannot change one.
    GRANT USAGE ON SCHEMA outbox TO outbox_relay;
    GRANT SELECT, DELETE, UPDATE (sent_at) ON outbox.message TO outbox_relay;
    GRANT SELECT ON SEQUENCE outbox.message_id_seq TO outbox_relay;
    GRANT SELECT, INSERT, UPDATE ON outbox.lane TO outbox_relay;
    GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.waiting, outbox.dead, outbox.relay TO outbox_relay;
    -- The commands run with this role, too. The database writes the time and the role of a record: a relay cannot. A relay
    -- cannot change a record either; the function adds to one that the same login role began and has not finished.
    REVOKE ALL ON outbox.operation FROM outbox_relay;
    GRANT SELECT, INSERT (by_whom, action, why, selection, affected, message_ids) ON outbox.operation TO outbox_relay;
    GRANT EXECUTE ON FUNCTION outbox.recorded(pg_catalog.int8, pg_catalog.int8, pg_catalog.uuid[], pg_catalog.bool)
        TO outbox_relay;
    GRANT SELECT ON outbox.migration, outbox.status TO outbox_relay;
    GRANT EXECUTE ON FUNCTION outbox.measure() TO outbox_relay;

    -- Monitoring sees counts and ages, never a message.
    GRANT USAGE ON SCHEMA outbox TO outbox_monitor;
    GRANT SELECT ON outbox.status, outbox.relay, outbox.migration TO outbox_monitor;
    GRANT EXECUTE ON FUNCTION outbox.measure() TO outbox_monitor;

    PERFORM pg_catalog.set_config('search_path', path, true);
END
$$;
