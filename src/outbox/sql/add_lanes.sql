-- Puts back lanes that somebody has deleted. From the beginning: what their marks were is not known any more. $1 lanes
INSERT INTO outbox.lane (lane) SELECT unnest($1::smallint[]) ON CONFLICT (lane) DO NOTHING
