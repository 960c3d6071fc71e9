-- The relation of a file that an error names. $1 tablespace (0: the database's own), $2 number of the file
SELECT format('%I.%I', n.nspname, c.relname) AS name,
       coalesce(c.oid IN (m.oid, m.reltoastrelid), false) AS has_messages,
       c.relkind IN ('i', 'I') AS is_index
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_namespace home ON home.nspname = 'outbox'
LEFT JOIN pg_class m ON m.relnamespace = home.oid AND m.relname = 'message'
WHERE c.oid = pg_filenode_relation($1, $2)
