-- Roles that cannot log in, have members, and have rights both on this outbox and in another database of the server: their
-- members work there as well. All databases of a server share the catalog of these rights, so the query needs no other
-- database.
WITH grantee AS (
    SELECT x.grantee AS oid
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    CROSS JOIN LATERAL (
        SELECT t.grantee FROM pg_catalog.aclexplode(c.relacl) t
        UNION
        SELECT t.grantee FROM pg_catalog.pg_attribute a CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) t
        WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid
    ) x
    WHERE n.nspname OPERATOR(pg_catalog.=) 'outbox'::pg_catalog.text
      AND c.relname OPERATOR(pg_catalog.=) 'message'::pg_catalog.text
)
SELECT pg_catalog.format('%s (%s)', r.rolname, pg_catalog.string_agg(DISTINCT d.datname::pg_catalog.text, ', ')) AS word
FROM grantee g
JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) g.oid AND NOT r.rolcanlogin
JOIN pg_catalog.pg_shdepend s ON s.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_authid'::pg_catalog.regclass::pg_catalog.oid
     AND s.refobjid OPERATOR(pg_catalog.=) r.oid
JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.dbid
     AND d.datname OPERATOR(pg_catalog.<>) pg_catalog.current_database()
WHERE EXISTS (SELECT FROM pg_catalog.pg_auth_members m WHERE m.roleid OPERATOR(pg_catalog.=) r.oid)
GROUP BY r.rolname
