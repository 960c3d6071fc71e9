-- Transactions that keep this one from writing to the outbox (the rest of the statement is blockers.sql), lanes' rows alone.
-- It reads one table of the outbox: a person who locks several is in no deadlock with it.
WITH locked (what, xmax) AS MATERIALIZED (
    SELECT 'lane ' || o.lane, o.xmax FROM ONLY outbox.lane o
