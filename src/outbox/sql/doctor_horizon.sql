-- What keeps VACUUM from removing old versions of rows in this database, the oldest first. `age` counts transactions. Of other
-- roles' sessions a role without pg_read_all_stats sees nothing here.
SELECT h.what, h.age
FROM (
    SELECT format('pid %s (user %s, application "%s")', a.pid, coalesce(a.usename::text, '?'),
                  left(coalesce(a.application_name, ''), 64)) AS what,
           age(a.backend_xmin) AS age
    FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
    UNION ALL
    SELECT format('the prepared transaction ''%s'' (user %s)', p.gid, p.owner), age(p.transaction)
    FROM pg_prepared_xacts p
    WHERE p.database = current_database()
    UNION ALL
    SELECT format('the replication slot %I', s.slot_name), age(s.xmin)
    FROM pg_replication_slots s
    UNION ALL
    SELECT format('the standby "%s" (hot_standby_feedback)', left(coalesce(r.application_name, ''), 64)), age(r.backend_xmin)
    FROM pg_stat_replication r
) h
WHERE h.age IS NOT NULL
ORDER BY h.age DESC
LIMIT 3
