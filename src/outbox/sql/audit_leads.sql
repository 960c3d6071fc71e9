-- Whether no older relay lives: the oldest one goes on auditing. By rows that only relays write: whoever may connect could
-- take an advisory lock, and then nobody would audit; and a row's lock for as long as a relay lives would be a transaction
-- that keeps every dead row of the server. Two that both believe it audit both, which costs time, and no message.
-- A relay that died is passed over after a minute. A time that lies ahead is no sign of life: a clock was set back.
-- $1 instance
SELECT NOT EXISTS (
    SELECT FROM outbox.relay other
    WHERE other.instance <> $1
      AND other.seen_at BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp()
      AND (other.started_at, other.instance) < (SELECT own.started_at, own.instance FROM outbox.relay own WHERE own.instance = $1)
) AS leads
