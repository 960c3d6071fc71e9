-- Messages with this id among the waiting and the dead; of either the first rows. $1 message id, $2 rows
(SELECT w.lane, w.id
 FROM (SELECT w.lane, w.id, w.message_id FROM outbox.waiting w LIMIT $2) w WHERE w.message_id = $1)
UNION
(SELECT d.lane, d.id
 FROM (SELECT d.lane, d.id, d.message_id FROM outbox.dead d LIMIT $2) d WHERE d.message_id = $1)
