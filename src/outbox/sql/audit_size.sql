-- Pages of outbox.message and outbox.waiting. A table that somebody has partitioned counts as long as its longest partition:
-- the walk reads a range of pages in each partition.
SELECT greatest(pg_relation_size('outbox.message'),
                (SELECT max(pg_relation_size(t.relid)) FROM pg_partition_tree('outbox.message') t))
           / current_setting('block_size')::bigint AS message,
       greatest(pg_relation_size('outbox.waiting'),
                (SELECT max(pg_relation_size(t.relid)) FROM pg_partition_tree('outbox.waiting') t))
           / current_setting('block_size')::bigint AS waiting
