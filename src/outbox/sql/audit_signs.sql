-- Signs that marks and messages may no longer fit together. `files` changes when somebody truncates, restarts or rewrites
-- one of the tables or the sequence; `drawn` goes back with setval, and `clock` when the server's
-- clock is set back.
SELECT (SELECT string_agg(concat(c.relname, '=', c.relfilenode), ' ' ORDER BY c.relname)
        FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'outbox' AND c.relname IN ('message', 'message_id_seq', 'lane', 'waiting', 'dead'))
           AS files,
       (SELECT concat_ws(' ', s.seqcache, s.seqincrement, s.seqcycle)
        FROM pg_sequence s
        JOIN pg_class c ON c.oid = s.seqrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'outbox' AND c.relname = 'message_id_seq') AS properties,
       (SELECT CASE WHEN q.is_called THEN q.last_value ELSE q.last_value - 1 END FROM outbox.message_id_seq q) AS drawn,
       extract(epoch FROM clock_timestamp())::double precision AS clock
