-- Every setting of the server that a session may change, with its built-in value: what a server, a database or a role can
-- have set otherwise. Not the DBA's view of us (logging, statistics), not extensions', not the transaction's own, and not
-- default_transaction_read_only, which says that a server was demoted. A commit may wait for more or less, but it waits.
SELECT s.name,
       CASE WHEN s.name = 'synchronous_commit' AND s.setting <> 'off' THEN s.setting ELSE s.boot_val END AS value,
       s.setting IS DISTINCT FROM s.boot_val AS differs
FROM pg_catalog.pg_settings s
WHERE s.context = 'user' AND s.boot_val IS NOT NULL
  AND s.category !~ '^(Reporting and Logging|Statistics|Customized Options)'
  AND s.name <> ALL ('{transaction_isolation,transaction_read_only,transaction_deferrable,default_transaction_read_only,
                       application_name,local_preload_libraries,temp_buffers}'::text[])
ORDER BY s.name
