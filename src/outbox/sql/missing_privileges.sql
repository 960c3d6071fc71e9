SELECT format('GRANT %s TO %I', wanted.what, current_user) AS mend
FROM (VALUES
    ('USAGE ON SCHEMA outbox', has_schema_privilege('outbox', 'USAGE')),
    ('SELECT ON outbox.message', has_table_privilege('outbox.message', 'SELECT')),
    ('DELETE ON outbox.message', has_table_privilege('outbox.message', 'DELETE')),
    ('UPDATE (sent_at) ON outbox.message', has_column_privilege('outbox.message', 'sent_at', 'UPDATE')),
    ('SELECT, UPDATE ON outbox.lane',
     has_table_privilege('outbox.lane', 'SELECT') AND has_table_privilege('outbox.lane', 'UPDATE')),
    ('SELECT, INSERT, UPDATE, DELETE ON outbox.waiting',
     has_table_privilege('outbox.waiting', 'SELECT') AND has_table_privilege('outbox.waiting', 'INSERT')
     AND has_table_privilege('outbox.waiting', 'UPDATE') AND has_table_privilege('outbox.waiting', 'DELETE')),
    ('SELECT, INSERT, UPDATE, DELETE ON outbox.dead',
     has_table_privilege('outbox.dead', 'SELECT') AND has_table_privilege('outbox.dead', 'INSERT')
     AND has_table_privilege('outbox.dead', 'UPDATE') AND has_table_privilege('outbox.dead', 'DELETE')),
    ('SELECT, INSERT, UPDATE, DELETE ON outbox.relay',
     has_table_privilege('outbox.relay', 'SELECT') AND has_table_privilege('outbox.relay', 'INSERT')
     AND has_table_privilege('outbox.relay', 'UPDATE') AND has_table_privilege('outbox.relay', 'DELETE')),
    ('SELECT ON outbox.migration', has_table_privilege('outbox.migration', 'SELECT')),
    ('SELECT ON outbox.status', has_table_privilege('outbox.status', 'SELECT')),
    ('EXECUTE ON FUNCTION outbox.measure()', has_function_privilege('outbox.measure()', 'EXECUTE'))
) AS wanted (what, granted)
WHERE NOT wanted.granted
