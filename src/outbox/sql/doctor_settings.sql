-- Settings with which a crash of the server, or its daily work, harms an outbox. A session's own value of synchronous_commit
-- says nothing about producers, so this reads the defaults of the server, of the database and of each role.
SELECT s.name || ' = off' AS word
FROM pg_settings s
WHERE s.name IN ('fsync', 'full_page_writes', 'autovacuum', 'track_counts') AND s.setting = 'off'
   OR s.name = 'synchronous_commit' AND s.reset_val = 'off'
UNION ALL
SELECT 'synchronous_commit = off for '
       || concat_ws(' in ', 'role ' || quote_ident(r.rolname), 'database ' || quote_ident(d.datname))
FROM pg_db_role_setting s
LEFT JOIN pg_roles r ON r.oid = s.setrole
LEFT JOIN pg_database d ON d.oid = s.setdatabase
WHERE s.setconfig && '{synchronous_commit=off}'::text[]
  AND (s.setdatabase = 0 OR d.datname = current_database())
UNION ALL
SELECT format('autovacuum_enabled = off on %I.%I', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'outbox' AND c.reloptions && '{autovacuum_enabled=false,autovacuum_enabled=off}'::text[]
ORDER BY 1
LIMIT 20
