-- Roles that somebody granted INSERT on outbox.message, and the GRANT statements that each of them lacks to write an event.
-- The owner and superusers need no grant.
WITH message AS (
    SELECT c.oid, c.relowner, c.relacl, c.relnamespace
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'outbox' AND c.relname = 'message'
), grantee AS (
    SELECT x.grantee FROM message m CROSS JOIN LATERAL aclexplode(m.relacl) x WHERE x.privilege_type = 'INSERT'
    UNION
    SELECT x.grantee
    FROM message m
    JOIN pg_attribute a ON a.attrelid = m.oid
    CROSS JOIN LATERAL aclexplode(a.attacl) x
    WHERE x.privilege_type = 'INSERT'
)
SELECT r.rolname::text AS producer,
       array(
           SELECT format('GRANT %s TO %I', wanted.what, r.rolname)
           FROM (
               SELECT 'USAGE ON SCHEMA outbox', has_schema_privilege(r.oid, m.relnamespace, 'USAGE')
               UNION ALL
               SELECT format('INSERT (%I) ON outbox.message', a.attname),
                      has_column_privilege(r.oid, m.oid, a.attnum, 'INSERT')
               FROM pg_attribute a
               WHERE a.attrelid = m.oid AND a.attname IN ('aggregate_type', 'aggregate_id', 'event_type', 'payload')
               UNION ALL
               SELECT 'EXECUTE ON FUNCTION outbox.uuid_v7()', has_function_privilege(r.oid, f.oid, 'EXECUTE')
               FROM pg_proc f
               WHERE f.pronamespace = m.relnamespace AND f.proname = 'uuid_v7'
           ) AS wanted (what, granted)
           WHERE NOT wanted.granted
       ) AS missing
FROM message m
CROSS JOIN grantee g
JOIN pg_roles r ON r.oid = g.grantee AND r.oid <> m.relowner AND NOT r.rolsuper
ORDER BY 1
LIMIT 20
