-- Privileges for the three kinds of role that meet an outbox. Run it as the owner of schema outbox (the
-- CREATE ROLE statements need CREATEROLE; leave them out where roles are managed elsewhere), then
--   GRANT outbox_producer TO my_service;   GRANT outbox_relay TO my_relay;   GRANT outbox_monitor TO my_exporter;
-- It may be run again.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['outbox_producer', 'outbox_relay', 'outbox_monitor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
END
$$;

-- A producer inserts events. It cannot read the outbox, and it cannot forge a position, a time or an outcome.
GRANT USAGE ON SCHEMA outbox TO outbox_producer;
GRANT INSERT (message_id, aggregate_type, aggregate_id, event_type, payload, binary_payload, content_type,
              headers, exchange, routing_key, available_at)
    ON outbox.message TO outbox_producer;
GRANT INSERT ON outbox.debezium TO outbox_producer;

-- A relay reads messages and writes outcomes. It cannot write an event, and it cannot change one.
GRANT USAGE ON SCHEMA outbox TO outbox_relay;
GRANT SELECT, DELETE, UPDATE (sent_at) ON outbox.message TO outbox_relay;
GRANT SELECT ON SEQUENCE outbox.message_id_seq TO outbox_relay;
GRANT SELECT, UPDATE ON outbox.lane TO outbox_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.waiting, outbox.dead, outbox.relay TO outbox_relay;
GRANT SELECT, INSERT ON outbox.operation TO outbox_relay;
GRANT SELECT ON outbox.migration, outbox.status TO outbox_relay;
GRANT EXECUTE ON FUNCTION outbox.measure() TO outbox_relay;

-- Monitoring sees counts and ages, never a message.
GRANT USAGE ON SCHEMA outbox TO outbox_monitor;
GRANT SELECT ON outbox.status, outbox.relay, outbox.migration TO outbox_monitor;
GRANT EXECUTE ON FUNCTION outbox.measure() TO outbox_monitor;
