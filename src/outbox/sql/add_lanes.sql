-- Puts back lanes that somebody has deleted. Their marks are lost, so they begin at position 0. $1 lanes
INSERT INTO outbox.lane (lane) SELECT unnest($1::smallint[]) ON CONFLICT (lane) DO NOTHING
