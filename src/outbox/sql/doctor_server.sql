-- The server, the database and this session, for a person. `tls` is NULL without TLS. Behind a pooler it is the pooler's own
-- connection. `sees_others`: this role may see when other roles' transactions began.
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::integer AS number,
       current_database()::text AS database,
       current_user::text AS login,
       host(inet_server_addr()) AS address,
       inet_server_port() AS port,
       (SELECT s.version FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid() AND s.ssl) AS tls,
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_others
