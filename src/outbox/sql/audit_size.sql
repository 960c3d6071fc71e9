-- Pages of the messages and of the waiting ones. A table that somebody has partitioned is as long as its longest part: a
-- range of pages is read in each of them.
SELECT greatest(pg_relation_size('outbox.message'),
                (SELECT max(pg_relation_size(t.relid)) FROM pg_partition_tree('outbox.message') t))
           / current_setting('block_size')::bigint AS message,
       greatest(pg_relation_size('outbox.waiting'),
                (SELECT max(pg_relation_size(t.relid)) FROM pg_partition_tree('outbox.waiting') t))
           / current_setting('block_size')::bigint AS waiting
