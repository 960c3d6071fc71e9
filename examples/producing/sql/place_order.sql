-- Places an order and writes its events in the same transaction.
BEGIN;
INSERT INTO orders (id, total_cents, status) VALUES ('sql-1042', 1999, 'placed');
INSERT INTO outbox.message (aggregate_type, aggregate_id, event_type, payload)
VALUES ('order', 'sql-1042', 'placed', '{"id":"sql-1042","total_cents":1999}');
SELECT outbox.enqueue_binary('order', 'sql-1042', 'receipt_printed', 'Order sql-1042: 1999 cents'::bytea, 'text/plain');
COMMIT;
