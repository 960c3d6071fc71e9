-- Every setting that a session may change, with its built-in value: a server, a database or a role can have changed it.
-- Left out are settings of logging and statistics (they are the DBA's), settings of extensions, settings of the transaction,
-- and default_transaction_read_only, which shows that a server was demoted. synchronous_commit keeps every value but off.
SELECT s.name,
       CASE WHEN s.name = 'synchronous_commit' AND s.setting <> 'off' THEN s.setting ELSE s.boot_val END AS value,
       s.setting IS DISTINCT FROM s.boot_val AS differs
FROM pg_catalog.pg_settings s
WHERE s.context = 'user' AND s.boot_val IS NOT NULL
  AND s.category !~ '^(Reporting and Logging|Statistics|Customized Options)'
  AND s.name <> ALL ('{transaction_isolation,transaction_read_only,transaction_deferrable,default_transaction_read_only,
                       application_name,local_preload_libraries,temp_buffers}'::text[])
ORDER BY s.name
