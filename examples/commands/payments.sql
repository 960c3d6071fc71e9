-- The tables and the role of the example. Run it as the owner of the database, after both migrations and their roles:
-- psql -v ON_ERROR_STOP=1 -d payments -f payments.sql
CREATE ROLE payments_api LOGIN PASSWORD 'payments' IN ROLE inbox_consumer, outbox_producer;
-- Every wait for the database has a bound.
ALTER ROLE payments_api SET statement_timeout = '10s';
ALTER ROLE payments_api SET idle_in_transaction_session_timeout = '60s';

-- Deliberately without a unique order: only the Idempotency-Key prevents a second payment.
CREATE TABLE payment (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account  text   NOT NULL,
    order_id text   NOT NULL,
    cents    bigint NOT NULL CHECK (cents > 0)
);
GRANT SELECT, INSERT ON payment TO payments_api;
