-- Who may do what with each object of our schemas, a line a role, an object and what it may there.
WITH role (name, place) AS (
    VALUES ('outbox_producer', 1), ('outbox_relay', 2), ('outbox_monitor', 3), ('inbox_consumer', 4), ('inbox_monitor', 5), ('public', 6)
), relation AS (
    SELECT c.oid, c.relkind, format('%s.%s', n.nspname, c.relname) AS called
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname IN ('outbox', 'inbox') AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
), may (role, place, object, privilege) AS (
    SELECT r.name, r.place, t.called, p.privilege
    FROM role r CROSS JOIN relation t
    CROSS JOIN unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS p (privilege)
    WHERE t.relkind <> 'S' AND has_table_privilege(r.name, t.oid, p.privilege)
    UNION ALL
    SELECT r.name, r.place, t.called, format('%s (%s)', p.privilege, string_agg(a.attname, ', ' ORDER BY a.attnum))
    FROM role r CROSS JOIN relation t
    CROSS JOIN unnest('{SELECT,INSERT,UPDATE,REFERENCES}'::text[]) AS p (privilege)
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE t.relkind <> 'S' AND has_column_privilege(r.name, t.oid, a.attnum, p.privilege)
      AND NOT has_table_privilege(r.name, t.oid, p.privilege)
    GROUP BY r.name, r.place, t.called, p.privilege
    UNION ALL
    SELECT r.name, r.place, t.called, p.privilege
    FROM role r CROSS JOIN relation t CROSS JOIN unnest('{SELECT,USAGE,UPDATE}'::text[]) AS p (privilege)
    WHERE t.relkind = 'S' AND has_sequence_privilege(r.name, t.oid, p.privilege)
    UNION ALL
    SELECT r.name, r.place, 'schema ' || n.nspname, p.privilege
    FROM role r CROSS JOIN pg_namespace n CROSS JOIN unnest('{USAGE,CREATE}'::text[]) AS p (privilege)
    WHERE n.nspname IN ('outbox', 'inbox') AND has_schema_privilege(r.name, n.oid, p.privilege)
    UNION ALL
    -- Those that act with their owner's rights; the others do nothing that their caller may not.
    SELECT r.name, r.place, format('%s.%s()', n.nspname, f.proname), 'EXECUTE'
    FROM role r CROSS JOIN pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
    WHERE n.nspname IN ('outbox', 'inbox') AND f.prosecdef AND has_function_privilege(r.name, f.oid, 'EXECUTE')
)
SELECT format('%s | %s | %s', role, object, string_agg(privilege, ', ' ORDER BY privilege)) AS line
FROM may
GROUP BY role, place, object
ORDER BY place, object
