-- As blockers_lanes.sql, of table locks alone: it reads no table of the outbox, so no lock on one can stop it.
WITH locked (what, xmax) AS MATERIALIZED (
    SELECT NULL::text, NULL::xid WHERE false
