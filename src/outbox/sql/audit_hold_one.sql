-- Waits for a lane that workers claim without a pause. Claims skip a locked lane, so the session that waits gets the lane
-- next. $1 lane
SELECT l.lane FROM ONLY outbox.lane l WHERE l.lane = $1 FOR UPDATE
