-- Waits for a lane that is worked without a pause: a claim passes over a lane that is locked, so its holder's successor is
-- whoever waits. $1 lane
SELECT l.lane FROM outbox.lane l WHERE l.lane = $1 FOR UPDATE
