-- What schema version 1 has and this database has not: the version is recorded, and somebody took a part away or
-- changed one since.
WITH part (name, columns) AS (
    VALUES ('migration', '{version,name,checksum,applied_at}'::name[]),
           ('message', '{tx,id,message_id,aggregate_type,aggregate_id,event_type,payload,binary_payload,content_type,
                         headers,exchange,routing_key,available_at,created_at,lane,sent_at}'),
           ('message_id_seq', '{last_value,is_called}'),
           ('lane', '{lane,low_water,candidate,candidate_tx}'),
           ('waiting', '{lane,id,message_id,key_hash,cause,replay,due_at,due_since,attempts,reason,last_error}'),
           ('dead', '{lane,id,message_id,reason,attempts,last_error,replay,died_at}'),
           ('operation', '{id,at,by_role,by_whom,action,why,selection,affected,message_ids}'),
           ('relay', '{instance,host,version,workers,state,started_at,seen_at}'),
           ('status', '{pending,due,waiting,dead,oldest_due_age_seconds,pending_is_capped}')
), here AS (
    SELECT p.name, p.columns, c.oid
    FROM part p
    LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'outbox')
        ON c.relname = p.name AND c.relkind IN ('r', 'p', 'v', 'S')
)
SELECT format('table outbox.%s', name) AS word
FROM here
WHERE oid IS NULL
UNION ALL
SELECT format('column outbox.%s.%s', h.name, wanted.name)
FROM here h
CROSS JOIN LATERAL unnest(h.columns) AS wanted (name)
LEFT JOIN pg_attribute a ON a.attrelid = h.oid AND a.attname = wanted.name AND a.attnum > 0 AND NOT a.attisdropped
WHERE h.oid IS NOT NULL AND a.attnum IS NULL
UNION ALL
-- A position that is drawn later than one above it may come below a mark, where nobody looks (low_water.rs).
SELECT 'sequence outbox.message_id_seq: CACHE 1, NO CYCLE, INCREMENT BY 1'
FROM pg_sequence s
JOIN pg_class c ON c.oid = s.seqrelid
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'outbox'
WHERE c.relname = 'message_id_seq' AND (s.seqcache <> 1 OR s.seqcycle OR s.seqincrement <= 0)
