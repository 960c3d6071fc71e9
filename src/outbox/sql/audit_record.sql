-- Reports the audit to people and to `outboxd status`. $1 instance, $2 whether a whole audit has just ended, $3 stranded
-- messages that are known and not yet filed
UPDATE outbox.relay r
SET audited_at = CASE WHEN $2 THEN clock_timestamp() ELSE r.audited_at END, stranded = $3
WHERE r.instance = $1
