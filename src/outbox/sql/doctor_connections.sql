-- Connections of the server, of this role and of this database, and their limits; -1 is no limit. Every role may count the
-- sessions: their role and database are public.
SELECT current_setting('max_connections')::integer
       - current_setting('superuser_reserved_connections')::integer
       - coalesce(current_setting('reserved_connections', true), '0')::integer AS server_limit,
       count(*)::integer AS server_used,
       (SELECT r.rolconnlimit FROM pg_roles r WHERE r.rolname = current_user) AS role_limit,
       (count(*) FILTER (WHERE a.usename = current_user))::integer AS role_used,
       (SELECT d.datconnlimit FROM pg_database d WHERE d.datname = current_database()) AS database_limit,
       (count(*) FILTER (WHERE a.datname = current_database()))::integer AS database_used
FROM pg_stat_activity a
WHERE a.usename IS NOT NULL AND a.datname IS NOT NULL AND coalesce(a.backend_type, 'client backend') = 'client backend'
