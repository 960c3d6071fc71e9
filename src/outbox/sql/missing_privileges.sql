-- GRANT statements that this role lacks to run a relay. The query uses object ids, because without USAGE a role cannot even
-- look up a name.
WITH table_ AS (
    SELECT c.relname AS name, c.oid
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'outbox' AND c.relkind IN ('r', 'v')
), wanted (what, granted) AS (
    SELECT 'USAGE ON SCHEMA outbox', has_schema_privilege(n.oid, 'USAGE')
    FROM pg_namespace n WHERE n.nspname = 'outbox'
    UNION ALL
    SELECT 'UPDATE (sent_at) ON outbox.message', has_column_privilege(t.oid, a.attnum, 'UPDATE')
    FROM table_ t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = 'sent_at'
    WHERE t.name = 'message'
    UNION ALL
    -- The database sets the role and the time of a record.
    SELECT 'INSERT (by_whom, action, why, selection, affected, message_ids) ON outbox.operation',
           bool_and(has_column_privilege(t.oid, a.attnum, 'INSERT'))
    FROM table_ t
    JOIN pg_attribute a ON a.attrelid = t.oid
     AND a.attname IN ('by_whom', 'action', 'why', 'selection', 'affected', 'message_ids')
    WHERE t.name = 'operation'
    UNION ALL
    SELECT format('%s ON outbox.%s', p.privilege, t.name), has_table_privilege(t.oid, p.privilege)
    FROM (VALUES ('message', 'SELECT'), ('message', 'DELETE'),
                 ('lane', 'SELECT'), ('lane', 'INSERT'), ('lane', 'UPDATE'),
                 ('waiting', 'SELECT'), ('waiting', 'INSERT'), ('waiting', 'UPDATE'), ('waiting', 'DELETE'),
                 ('dead', 'SELECT'), ('dead', 'INSERT'), ('dead', 'UPDATE'), ('dead', 'DELETE'),
                 ('relay', 'SELECT'), ('relay', 'INSERT'), ('relay', 'UPDATE'), ('relay', 'DELETE'),
                 ('migration', 'SELECT'), ('operation', 'SELECT'), ('status', 'SELECT')) AS p (name, privilege)
    JOIN table_ t ON t.name = p.name
    UNION ALL
    -- CASE: without it the planner may evaluate this for every relation, before it compares the name.
    SELECT 'SELECT ON SEQUENCE outbox.message_id_seq',
           CASE s.relkind WHEN 'S' THEN has_sequence_privilege(s.oid, 'SELECT') END
    FROM pg_class s JOIN pg_namespace n ON n.oid = s.relnamespace
    WHERE n.nspname = 'outbox' AND s.relname = 'message_id_seq'
    UNION ALL
    SELECT 'EXECUTE ON FUNCTION outbox.measure()', has_function_privilege(f.oid, 'EXECUTE')
    FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
    WHERE n.nspname = 'outbox' AND f.proname = 'measure'
)
SELECT format('GRANT %s TO %I', what, current_user) AS word
FROM wanted
WHERE NOT granted
