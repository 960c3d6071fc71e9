-- The business tables of the consumers. Run it as the owner of the database, after the inbox migration and
-- inbox_roles.sql: psql -v ON_ERROR_STOP=1 -d payments -f payments.sql
CREATE ROLE payments_service LOGIN PASSWORD 'payments' IN ROLE inbox_consumer;
-- Every statement of a consumer has a bound, in every language. The bound is below the 30 s that the Rust runner gives
-- a handler, so that the statement fails and not its session.
ALTER ROLE payments_service SET statement_timeout = '25s';
ALTER ROLE payments_service SET idle_in_transaction_session_timeout = '60s';

-- Deliberately without a unique order: only the inbox prevents a second payment.
CREATE TABLE payment (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id text   NOT NULL,
    cents    bigint NOT NULL CHECK (cents > 0)
);
-- Only the newest address counts.
CREATE TABLE address (
    order_id text PRIMARY KEY,
    address  text NOT NULL
);
-- The provider's charges, under the provider's ids.
CREATE TABLE charge (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id    text   NOT NULL,
    cents       bigint NOT NULL CHECK (cents > 0),
    provider_id text   NOT NULL
);
GRANT INSERT ON payment, charge TO payments_service;
GRANT SELECT, INSERT, UPDATE ON address TO payments_service;
