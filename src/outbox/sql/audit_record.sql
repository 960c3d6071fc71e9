-- For people and `outboxd status`. $1 instance, $2 a whole audit has just ended, $3 known and not filed
UPDATE outbox.relay r
SET audited_at = CASE WHEN $2 THEN clock_timestamp() ELSE r.audited_at END, stranded = $3
WHERE r.instance = $1
