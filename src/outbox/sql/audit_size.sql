-- Pages of outbox.message and outbox.waiting, and the writes that the server has counted on the tables of the outbox: while
-- that number stands, a whole audit need not be repeated. A session reports its writes up to ten seconds late, and without
-- track_counts the server counts nothing, so the number is no proof.
-- A table that somebody has partitioned counts as long as its longest partition: the walk reads a range of pages in each
-- partition.
SELECT greatest(pg_relation_size('outbox.message'),
                (SELECT max(pg_relation_size(t.relid)) FROM pg_partition_tree('outbox.message') t))
           / current_setting('block_size')::bigint AS message,
       greatest(pg_relation_size('outbox.waiting'),
                (SELECT max(pg_relation_size(t.relid)) FROM pg_partition_tree('outbox.waiting') t))
           / current_setting('block_size')::bigint AS waiting,
       (SELECT coalesce(sum(pg_stat_get_tuples_inserted(t.relid) + pg_stat_get_tuples_updated(t.relid)
                            + pg_stat_get_tuples_deleted(t.relid)), 0)::bigint
        FROM (VALUES ('outbox.message'), ('outbox.lane'), ('outbox.waiting'), ('outbox.dead')) AS part (name)
        -- pg_partition_tree has no row for a table that is not partitioned.
        CROSS JOIN LATERAL (
            SELECT part.name::regclass AS relid
            UNION
            SELECT p.relid::regclass FROM pg_partition_tree(part.name::regclass) p
        ) t) AS writes
