-- The business table of the examples. Run it as the owner of the database, after the outbox migration and roles.sql:
-- psql -v ON_ERROR_STOP=1 -d shop -f shop.sql
CREATE ROLE shop_service LOGIN PASSWORD 'shop' IN ROLE outbox_producer;
CREATE TABLE orders (
    id          text    PRIMARY KEY,
    total_cents integer NOT NULL,
    status      text    NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON orders TO shop_service;
