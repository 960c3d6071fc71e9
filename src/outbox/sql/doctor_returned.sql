-- Messages that the broker returned because no queue was bound for them, among the first records.
SELECT (SELECT count(*) FROM (SELECT w.reason FROM outbox.waiting w LIMIT 10000) w WHERE w.reason = 'unroutable') AS waiting,
       (SELECT count(*) FROM (SELECT d.reason FROM outbox.dead d LIMIT 10000) d WHERE d.reason = 'unroutable') AS dead
