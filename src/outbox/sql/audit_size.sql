-- Pages of outbox.message and outbox.waiting, and the writes that the server has counted on the tables of the outbox: while
-- that number stands, a whole audit need not be repeated. A session reports its writes up to ten seconds late, and without
-- track_counts the server counts nothing, so the number is no proof.
-- A table that has partitions, or tables that inherit from it, counts as long as the longest of them: the walk reads a range
-- of pages in each.
WITH RECURSIVE tree (part, relid) AS (
    SELECT name, name::regclass::oid
    FROM (VALUES ('outbox.message'), ('outbox.lane'), ('outbox.waiting'), ('outbox.dead')) AS named (name)
    UNION
    SELECT t.part, i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.relid
)
SELECT coalesce(max(pg_relation_size(relid)) FILTER (WHERE part = 'outbox.message'), 0)::bigint
           / current_setting('block_size')::bigint AS message,
       coalesce(max(pg_relation_size(relid)) FILTER (WHERE part = 'outbox.waiting'), 0)::bigint
           / current_setting('block_size')::bigint AS waiting,
       coalesce(sum(pg_stat_get_tuples_inserted(relid) + pg_stat_get_tuples_updated(relid)
                    + pg_stat_get_tuples_deleted(relid)), 0)::bigint AS writes
FROM tree
