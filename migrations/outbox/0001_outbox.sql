-- outboxd, schema version 1: the outbox.
--
-- Plain SQL for any migration tool; it runs inside one transaction and needs CREATE on the database, or a schema of that
-- name of its own, and nothing else. Privileges for producers, relays and monitoring: deploy/postgres/roles.sql.

-- A name without its schema is looked for along search_path. Whoever may create in a schema of that path (on PostgreSQL 14
-- everybody may, in public) could plant a function or an operator there that fits better than PostgreSQL's own. So this
-- file looks in pg_catalog only; its last statement puts the caller's path back. What is looked up while a function
-- runs carries its schema in its body, or the function carries a path of its own.
-- Inside a transaction that is for the transaction only, as is the mark that tells so.
SELECT pg_catalog.set_config('outboxd.search_path', pg_catalog.current_setting('search_path'), false);
SELECT pg_catalog.set_config('outboxd.transaction', 'yes', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp',
                             pg_catalog.current_setting('outboxd.transaction') OPERATOR(pg_catalog.=) 'yes');

-- A DBA may have made it for the role that runs this, which must own it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'outbox') THEN
        CREATE SCHEMA outbox;
    END IF;
END
$$;
COMMENT ON SCHEMA outbox IS 'Transactional outbox: rows written with a business change, published by outboxd.';

CREATE TABLE outbox.migration (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE outbox.migration IS 'Which migrations ran here. A relay refuses a version that it does not know.';
COMMENT ON COLUMN outbox.migration.version IS 'The number in front of the migration file''s name.';
COMMENT ON COLUMN outbox.migration.name IS 'The migration file''s name without its number.';
COMMENT ON COLUMN outbox.migration.checksum IS 'SHA-256 of the file, hexadecimal; NULL when another tool than outboxd ran it.';
COMMENT ON COLUMN outbox.migration.applied_at IS 'When it ran.';

-- The key's hash names the key wherever its text would be too long for an index. Two keys with one hash
-- would merely wait for each other.
CREATE FUNCTION outbox.key_hash(aggregate_type text, aggregate_id text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN hashtextextended(aggregate_id, hashtextextended(aggregate_type, 0));
COMMENT ON FUNCTION outbox.key_hash(text, text) IS
    'Hash of a key (aggregate type and id); NULL without an aggregate id: such a message has no order to keep.';

-- A message id carries the time when it was made, and `outboxd where` finds a message by this time, without an index on
-- message_id. One expression that PostgreSQL inlines into the INSERT. PostgreSQL 18 has uuidv7(), but a default that depends
-- on the server's version would make two schemas of one migration.
CREATE FUNCTION outbox.uuid_v7() RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN (lpad(to_hex(floor(date_part('epoch', clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
            || right(gen_random_uuid()::text, 21))::uuid;
COMMENT ON FUNCTION outbox.uuid_v7() IS
    'A message id: UUID version 7 (RFC 9562), the time in milliseconds and 74 random bits.';

CREATE TABLE outbox.message (
    -- Stands before id: defaults are evaluated in column order, so the transaction has its id before it draws
    -- a position, and every transaction that can still own a position at or below L began before any
    -- transaction id that was assigned after L was drawn. outbox.lane.low_water rests on it.
    tx             xid8        NOT NULL DEFAULT pg_current_xact_id(),
    id             bigint      GENERATED ALWAYS AS IDENTITY (CACHE 1),
    message_id     uuid        NOT NULL DEFAULT outbox.uuid_v7(),
    aggregate_type text        NOT NULL,
    aggregate_id   text,
    event_type     text        NOT NULL,
    payload        json,
    binary_payload bytea,
    content_type   text        NOT NULL DEFAULT 'application/json',
    headers        json,
    exchange       text,
    routing_key    text,
    available_at   timestamptz,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    lane           smallint    NOT NULL GENERATED ALWAYS AS (
        (CASE WHEN aggregate_id IS NULL
              THEN uuid_hash_extended(message_id, 0)
              ELSE hashtextextended(aggregate_id, hashtextextended(aggregate_type, 0))
         END & 63)::smallint
    ) STORED,
    -- Counted once, while the value is in memory: to measure json that is stored compressed, a reader would have to
    -- decompress it, and 60 small rows of 200 MB each would stop every claim that meets them.
    body_size      integer     NOT NULL GENERATED ALWAYS AS (
        coalesce(octet_length(binary_payload), octet_length(payload::text), 0)
    ) STORED,
    headers_size   integer     GENERATED ALWAYS AS (octet_length(headers::text)) STORED,
    sent_at        timestamptz,
    PRIMARY KEY (lane, id),
    CONSTRAINT message_has_one_payload CHECK (num_nonnulls(payload, binary_payload) = 1)
) WITH (
    -- Room on the page for a second version of every row, which is longer by sent_at: the mark is then a heap-only
    -- update (sent_at is in no index), whatever snapshot keeps the first versions from being cleaned away.
    fillfactor = 45,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05
);
COMMENT ON TABLE outbox.message IS
    'One row per event, inserted in the transaction of the business change that it reports.';
COMMENT ON COLUMN outbox.message.tx IS 'Transaction that wrote what is published of the row. Left to its default.';
COMMENT ON COLUMN outbox.message.id IS 'Position: the order within a key. Left to its default.';
COMMENT ON COLUMN outbox.message.message_id IS
    'Identity of the event for ever, the AMQP message_id. The default carries the time, by which outboxd where finds it, and is random otherwise, so that a restored database never reuses one.';
COMMENT ON COLUMN outbox.message.aggregate_type IS 'Kind of thing the event is about, for example order.';
COMMENT ON COLUMN outbox.message.aggregate_id IS
    'Which one. With aggregate_type it is the key: messages of one key keep their order. NULL: no order.';
COMMENT ON COLUMN outbox.message.event_type IS 'What happened, for example created; the AMQP type.';
COMMENT ON COLUMN outbox.message.payload IS 'JSON body; its text reaches the broker byte for byte. Exactly one of the two payloads.';
COMMENT ON COLUMN outbox.message.binary_payload IS 'Any other body; set content_type with it.';
COMMENT ON COLUMN outbox.message.content_type IS 'Media type of the body.';
COMMENT ON COLUMN outbox.message.headers IS
    'JSON object, nested at most four levels: AMQP headers, W3C traceparent and tracestate, correlation_id.';
COMMENT ON COLUMN outbox.message.exchange IS 'Overrides the configured exchange.';
COMMENT ON COLUMN outbox.message.routing_key IS 'Overrides the configured routing key.';
COMMENT ON COLUMN outbox.message.available_at IS
    'Not published before this time. A scheduled message leaves its key''s order until then.';
COMMENT ON COLUMN outbox.message.created_at IS 'When the row was written, by the database''s clock; lag is measured from here.';
COMMENT ON COLUMN outbox.message.lane IS 'Hash slot of the key (of message_id when there is no aggregate_id), 0 to 63.';
COMMENT ON COLUMN outbox.message.body_size IS 'Bytes of the body.';
COMMENT ON COLUMN outbox.message.headers_size IS 'Bytes of the headers'' JSON text.';
COMMENT ON COLUMN outbox.message.sent_at IS 'When a relay recorded the broker''s confirm. Written by relays only.';

CREATE TABLE outbox.lane (
    lane         smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    low_water    bigint   NOT NULL DEFAULT 0,
    candidate    bigint,
    candidate_tx xid8
) WITH (fillfactor = 20);
COMMENT ON TABLE outbox.lane IS
    'One row a lane. A relay works a lane while it holds this row''s lock; no other lock protects the lane''s messages.';
COMMENT ON COLUMN outbox.lane.lane IS 'The lane.';
COMMENT ON COLUMN outbox.lane.low_water IS
    'No message at or below this position is pending, and none can appear there any more.';
COMMENT ON COLUMN outbox.lane.candidate IS 'Position up to which low_water may follow what is settled, once candidate_tx allows it.';
COMMENT ON COLUMN outbox.lane.candidate_tx IS
    'Transaction id assigned after candidate was drawn. When every older transaction has ended, nothing can appear at or below candidate.';

INSERT INTO outbox.lane (lane) SELECT generate_series(0, 63);

CREATE TABLE outbox.waiting (
    lane       smallint    NOT NULL,
    id         bigint      NOT NULL,
    message_id uuid        NOT NULL,
    key_hash   bigint,
    cause      text        NOT NULL CHECK (cause IN ('retry', 'scheduled', 'behind', 'held', 'probe', 'redrive', 'replay',
                                                  'stranded')),
    replay     boolean     NOT NULL DEFAULT false,
    due_at     timestamptz,
    due_since  timestamptz NOT NULL,
    attempts   integer     NOT NULL DEFAULT 0,
    reason     text,
    last_error text,
    destination        bigint,
    failed_probes      integer,
    PRIMARY KEY (lane, id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
COMMENT ON TABLE outbox.waiting IS
    'Messages that are not to be published right now: waiting for a retry, for available_at, or behind an earlier one of their key.';
COMMENT ON COLUMN outbox.waiting.lane IS 'With id, the message.';
COMMENT ON COLUMN outbox.waiting.id IS 'With lane, the message.';
COMMENT ON COLUMN outbox.waiting.message_id IS 'The message''s identity.';
COMMENT ON COLUMN outbox.waiting.key_hash IS 'outbox.key_hash of the message''s key; NULL without one.';
COMMENT ON COLUMN outbox.waiting.cause IS
    'retry: an attempt failed. scheduled: available_at. behind: an earlier message of its key waits. held: everything to its destination fails. probe: chosen to try that destination. redrive, replay: asked for. stranded: found below the mark by the audit.';
COMMENT ON COLUMN outbox.waiting.replay IS 'Sent once already. Never holds its key back.';
COMMENT ON COLUMN outbox.waiting.due_at IS 'When it is tried next; NULL while it stands behind another message, or is held.';
COMMENT ON COLUMN outbox.waiting.due_since IS 'Since when it should have been sent (created_at or available_at); lag counts from here.';
COMMENT ON COLUMN outbox.waiting.attempts IS 'Failed attempts that count against the limit.';
COMMENT ON COLUMN outbox.waiting.reason IS 'Reason code of the last failure.';
COMMENT ON COLUMN outbox.waiting.last_error IS 'Text of the last failure.';
COMMENT ON COLUMN outbox.waiting.destination IS
    'Number of the exchange and routing key for which it is, or was, held; see crates/core/src/circuit.rs.';
COMMENT ON COLUMN outbox.waiting.failed_probes IS
    'Probes of the destination that had failed when it was held: later ones count as its attempts.';
CREATE INDEX waiting_held ON outbox.waiting (destination, id) WHERE cause = 'held' AND due_at IS NULL;
COMMENT ON INDEX outbox.waiting_held IS 'What is held for a destination.';
CREATE INDEX waiting_due ON outbox.waiting (lane, due_at) WHERE due_at IS NOT NULL;
COMMENT ON INDEX outbox.waiting_due IS 'What is due in a lane.';
-- A scheduled message and a replay do not hold their key back.
CREATE INDEX waiting_key ON outbox.waiting (lane, key_hash, id)
    WHERE key_hash IS NOT NULL AND NOT replay AND cause <> 'scheduled';
COMMENT ON INDEX outbox.waiting_key IS 'Which messages of a key hold the later ones back.';
CREATE INDEX waiting_due_since ON outbox.waiting (due_since) WHERE NOT replay;
COMMENT ON INDEX outbox.waiting_due_since IS 'The oldest waiting message, for the lag.';

CREATE TABLE outbox.dead (
    lane       smallint    NOT NULL,
    id         bigint      NOT NULL,
    message_id uuid        NOT NULL,
    reason     text        NOT NULL,
    attempts   integer     NOT NULL,
    last_error text        NOT NULL,
    replay     boolean     NOT NULL DEFAULT false,
    died_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (lane, id)
);
COMMENT ON TABLE outbox.dead IS 'Messages given up, with the reason, until they are redriven or discarded.';
COMMENT ON COLUMN outbox.dead.lane IS 'With id, the message.';
COMMENT ON COLUMN outbox.dead.id IS 'With lane, the message.';
COMMENT ON COLUMN outbox.dead.message_id IS 'The message''s identity.';
COMMENT ON COLUMN outbox.dead.reason IS 'Stable reason code.';
COMMENT ON COLUMN outbox.dead.attempts IS 'Attempts made, the last one included.';
COMMENT ON COLUMN outbox.dead.last_error IS 'What the broker or the relay said last.';
COMMENT ON COLUMN outbox.dead.replay IS 'The attempt that failed was a replay: the message had been sent before.';
COMMENT ON COLUMN outbox.dead.died_at IS 'When it was given up.';
CREATE INDEX dead_died_at ON outbox.dead (died_at, lane, id);
COMMENT ON INDEX outbox.dead_died_at IS 'The oldest first, page by page.';

CREATE TABLE outbox.operation (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    by_role    text        NOT NULL DEFAULT session_user,
    by_whom    text        NOT NULL,
    action     text        NOT NULL CHECK (action IN ('redrive', 'discard', 'replay', 'prune')),
    why        text        NOT NULL,
    selection  text        NOT NULL,
    affected   bigint      NOT NULL CHECK (affected >= 0),
    message_ids uuid[]     NOT NULL DEFAULT '{}',
    CONSTRAINT operation_lists_what_it_affected CHECK (cardinality(message_ids) <= least(affected, 1000))
);
COMMENT ON TABLE outbox.operation IS 'What operators changed by hand: who, when, why, and which messages.';
COMMENT ON COLUMN outbox.operation.id IS 'Order of the operations.';
COMMENT ON COLUMN outbox.operation.at IS 'When.';
COMMENT ON COLUMN outbox.operation.by_role IS 'Database role that did it.';
COMMENT ON COLUMN outbox.operation.by_whom IS 'Person or system, as given to the command.';
COMMENT ON COLUMN outbox.operation.action IS 'What was done.';
COMMENT ON COLUMN outbox.operation.why IS 'Reason, as given to the command.';
COMMENT ON COLUMN outbox.operation.selection IS 'The filters that chose the messages.';
COMMENT ON COLUMN outbox.operation.affected IS 'How many messages.';
COMMENT ON COLUMN outbox.operation.message_ids IS 'Which ones; at most 1,000 are listed.';

CREATE TABLE outbox.relay (
    instance   text        PRIMARY KEY,
    host       text        NOT NULL,
    version    text        NOT NULL,
    workers    integer     NOT NULL,
    state      text        NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    audited_at timestamptz,
    stranded   bigint      NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
COMMENT ON TABLE outbox.relay IS
    'Relays that work here; for people to read. One decision rests on it: which of them goes on auditing.';
COMMENT ON COLUMN outbox.relay.instance IS 'Name of the process, new at each start.';
COMMENT ON COLUMN outbox.relay.host IS 'Host it runs on.';
COMMENT ON COLUMN outbox.relay.version IS 'Version of outboxd.';
COMMENT ON COLUMN outbox.relay.workers IS 'Its workers.';
COMMENT ON COLUMN outbox.relay.state IS 'What it said of itself: starting, publishing, blocked, broker_down, stopping.';
COMMENT ON COLUMN outbox.relay.started_at IS 'When it started.';
COMMENT ON COLUMN outbox.relay.seen_at IS 'When it last said so; every few seconds while it lives.';
COMMENT ON COLUMN outbox.relay.audited_at IS 'When its last audit of the whole of outbox.message ended; NULL before the first.';
COMMENT ON COLUMN outbox.relay.stranded IS 'Unsent messages below the mark that it knows of and has not filed yet.';

-- NOTIFY takes a lock on the whole database cluster at commit, so a busy producer must not pay for it. A relay
-- that goes to sleep holds this advisory lock exclusively; only then is there anybody to wake.
-- While a relay is awake the shared lock is granted and kept until the transaction ends, which keeps the
-- relay from falling asleep between this insert and its commit.
CREATE FUNCTION outbox.wake() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NOT pg_catalog.pg_try_advisory_xact_lock_shared(122550254464888) THEN
        PERFORM pg_catalog.pg_notify('outbox_wake', '');
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.wake() IS 'Wakes a sleeping relay at commit; costs nothing while one is awake.';

CREATE TRIGGER wake AFTER INSERT ON outbox.message FOR EACH STATEMENT EXECUTE FUNCTION outbox.wake();

-- TRUNCATE leaves marks behind that would hide what is written next: with RESTART IDENTITY its positions begin below
-- them. The marks are taken back, and what was filed of the rows goes with them, in the same transaction. A relay that
-- holds a lane holds outbox.message, too (ROW EXCLUSIVE), so none holds one that is waited for here.
CREATE FUNCTION outbox.truncated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    UPDATE outbox.lane SET low_water = 0, candidate = NULL, candidate_tx = NULL;
    DELETE FROM outbox.waiting;
    DELETE FROM outbox.dead;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.truncated() IS 'Takes back all marks and forgets what was filed, when outbox.message is truncated.';
REVOKE EXECUTE ON FUNCTION outbox.truncated() FROM PUBLIC;

CREATE TRIGGER truncated AFTER TRUNCATE ON outbox.message FOR EACH STATEMENT EXECUTE FUNCTION outbox.truncated();

-- A key that is corrected in place gives the row another lane. What is filed of it follows: a dead message stays dead
-- until it is redriven, and one that waits does not wait under a key, or for a destination, that is not its own. A mark
-- (sent_at) is none of these columns and calls nothing.
CREATE FUNCTION outbox.moved() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    UPDATE outbox.waiting w
    SET lane = NEW.lane, id = NEW.id, message_id = NEW.message_id,
        key_hash = outbox.key_hash(NEW.aggregate_type, NEW.aggregate_id),
        -- What it waited for, an attempt, a destination or a message of its former key, is no more. Whether another one of
        -- its new key has it wait is asked when it is read.
        cause = CASE WHEN w.cause IN ('held', 'probe') THEN 'retry' ELSE w.cause END,
        destination = NULL, failed_probes = NULL,
        due_at = CASE WHEN w.cause IN ('scheduled', 'replay') THEN w.due_at ELSE clock_timestamp() END
    WHERE w.lane = OLD.lane AND w.id = OLD.id;
    UPDATE outbox.dead d
    SET lane = NEW.lane, id = NEW.id, message_id = NEW.message_id
    WHERE d.lane = OLD.lane AND d.id = OLD.id;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.moved() IS 'Lets what is filed of a message follow it, when its key, its id or its route is corrected in place.';
REVOKE EXECUTE ON FUNCTION outbox.moved() FROM PUBLIC;

CREATE TRIGGER moved AFTER UPDATE OF id, message_id, aggregate_type, aggregate_id, event_type, exchange, routing_key
    ON outbox.message FOR EACH ROW
    WHEN (OLD.lane <> NEW.lane OR OLD.id <> NEW.id OR OLD.message_id <> NEW.message_id
          OR OLD.aggregate_type <> NEW.aggregate_type OR OLD.aggregate_id IS DISTINCT FROM NEW.aggregate_id
          OR OLD.event_type <> NEW.event_type OR OLD.exchange IS DISTINCT FROM NEW.exchange
          OR OLD.routing_key IS DISTINCT FROM NEW.routing_key)
    EXECUTE FUNCTION outbox.moved();

-- A relay publishes what it has read, and locks no row for it. A message that is corrected meanwhile must not be marked as
-- sent, or the correction would never be. A mark cannot compare contents; it compares tx with what the claim could see.
-- AFTER: with a BEFORE trigger PostgreSQL would lock each row before its mark, at a cost.
CREATE FUNCTION outbox.corrected() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    UPDATE outbox.message m SET tx = pg_current_xact_id() WHERE m.lane = NEW.lane AND m.id = NEW.id AND m.sent_at IS NULL;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.corrected() IS
    'Notes which transaction corrected an unsent message: what a relay had read before is not marked as sent.';
REVOKE EXECUTE ON FUNCTION outbox.corrected() FROM PUBLIC;

CREATE TRIGGER corrected AFTER UPDATE OF message_id, aggregate_type, aggregate_id, event_type, payload, binary_payload,
                                         content_type, headers, exchange, routing_key
    ON outbox.message FOR EACH ROW
    WHEN (OLD.message_id <> NEW.message_id
          OR OLD.aggregate_type <> NEW.aggregate_type OR OLD.aggregate_id IS DISTINCT FROM NEW.aggregate_id
          OR OLD.event_type <> NEW.event_type OR OLD.content_type <> NEW.content_type
          OR OLD.payload::text IS DISTINCT FROM NEW.payload::text
          OR OLD.binary_payload IS DISTINCT FROM NEW.binary_payload
          OR OLD.headers::text IS DISTINCT FROM NEW.headers::text
          OR OLD.exchange IS DISTINCT FROM NEW.exchange OR OLD.routing_key IS DISTINCT FROM NEW.routing_key)
    EXECUTE FUNCTION outbox.corrected();

CREATE FUNCTION outbox.enqueue(
    aggregate_type text,
    aggregate_id   text,
    event_type     text,
    payload        json,
    headers        json        DEFAULT NULL,
    message_id     uuid        DEFAULT NULL,
    exchange       text        DEFAULT NULL,
    routing_key    text        DEFAULT NULL,
    available_at   timestamptz DEFAULT NULL,
    content_type   text        DEFAULT 'application/json'
) RETURNS uuid
    LANGUAGE plpgsql
    AS $$
DECLARE
    -- Drawn here, because a producer may insert and not read: RETURNING would need SELECT.
    new_id pg_catalog.uuid := coalesce(enqueue.message_id, outbox.uuid_v7());
BEGIN
    INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, payload, headers,
                                exchange, routing_key, available_at, content_type)
    VALUES (new_id, enqueue.aggregate_type, enqueue.aggregate_id, enqueue.event_type, enqueue.payload,
            enqueue.headers, enqueue.exchange, enqueue.routing_key, enqueue.available_at,
            coalesce(enqueue.content_type, 'application/json'));
    RETURN new_id;
END
$$;
COMMENT ON FUNCTION outbox.enqueue(text, text, text, json, json, uuid, text, text, timestamptz, text) IS
    'Writes one event in the caller''s transaction and returns its message id.';

CREATE FUNCTION outbox.enqueue_binary(
    aggregate_type text,
    aggregate_id   text,
    event_type     text,
    payload        bytea,
    content_type   text,
    headers        json        DEFAULT NULL,
    message_id     uuid        DEFAULT NULL,
    exchange       text        DEFAULT NULL,
    routing_key    text        DEFAULT NULL,
    available_at   timestamptz DEFAULT NULL
) RETURNS uuid
    LANGUAGE plpgsql
    AS $$
DECLARE
    new_id pg_catalog.uuid := coalesce(enqueue_binary.message_id, outbox.uuid_v7());
BEGIN
    INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, binary_payload, headers,
                                exchange, routing_key, available_at, content_type)
    VALUES (new_id, enqueue_binary.aggregate_type, enqueue_binary.aggregate_id, enqueue_binary.event_type,
            enqueue_binary.payload, enqueue_binary.headers, enqueue_binary.exchange,
            enqueue_binary.routing_key, enqueue_binary.available_at, enqueue_binary.content_type);
    RETURN new_id;
END
$$;
COMMENT ON FUNCTION outbox.enqueue_binary(text, text, text, bytea, text, json, uuid, text, text, timestamptz) IS
    'outbox.enqueue for a body that is not JSON.';

-- Cheap at any backlog: a few index probes a lane, and counts that stop at 10,000. Past that the pending
-- count is derived from the distance between positions (keys spread evenly over the 64 lanes).
--
-- A function, so that the plan is pinned: compiling it (jit) or sorting a whole lane (bitmap) costs more
-- than the answer. It reads what a monitoring role may not, hence SECURITY DEFINER.
CREATE FUNCTION outbox.measure(
    OUT pending bigint, OUT due bigint, OUT waiting bigint, OUT dead bigint,
    OUT oldest_due_age_seconds double precision, OUT pending_is_capped boolean
)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    -- A policy that is forced on the owner would make it say that nothing is pending.
    SET row_security = off
    SET jit = off
    SET enable_bitmapscan = off
    AS $$
    WITH lane AS MATERIALIZED (
        -- With nothing filed above the mark, no message needs a look into the exceptions.
        -- A lane that somebody has deleted counts from its beginning, as it will be relayed.
        SELECT l.lane, l.low_water,
               EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = l.lane AND w.id > l.low_water) AS some_waiting,
               EXISTS (SELECT FROM outbox.dead d WHERE d.lane = l.lane AND d.id > l.low_water) AS some_dead
        FROM (
            SELECT every.lane::smallint AS lane, coalesce(mark.low_water, 0) AS low_water
            FROM generate_series(0, 63) AS every (lane)
            LEFT JOIN outbox.lane mark ON mark.lane = every.lane
        ) l
    ), lanes AS (
        SELECT l.lane, front.id AS front, front.created_at, back.id AS back
        FROM lane l
        LEFT JOIN LATERAL (
            SELECT m.id, m.created_at
            FROM outbox.message m
            WHERE m.lane = l.lane AND m.id > l.low_water AND m.sent_at IS NULL
              AND (m.available_at IS NULL OR m.available_at <= clock_timestamp())
              AND (NOT l.some_waiting
                   OR NOT EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = m.lane AND w.id = m.id OFFSET 0))
              AND (NOT l.some_dead
                   OR NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = m.lane AND d.id = m.id OFFSET 0))
            ORDER BY m.id LIMIT 1
        ) front ON true
        LEFT JOIN LATERAL (
            SELECT m.id FROM outbox.message m WHERE m.lane = l.lane ORDER BY m.id DESC LIMIT 1
        ) back ON front.id IS NOT NULL
    ), hot AS (
        SELECT count(*) AS n
        FROM (
            SELECT 1
            FROM lane l
            CROSS JOIN LATERAL (
                SELECT 1
                FROM outbox.message m
                WHERE m.lane = l.lane AND m.id > l.low_water AND m.sent_at IS NULL
                  AND (NOT l.some_waiting
                       OR NOT EXISTS (SELECT FROM outbox.waiting w WHERE w.lane = m.lane AND w.id = m.id OFFSET 0))
                  AND (NOT l.some_dead
                       OR NOT EXISTS (SELECT FROM outbox.dead d WHERE d.lane = m.lane AND d.id = m.id OFFSET 0))
                ORDER BY m.id LIMIT 10001
            ) one
            LIMIT 10001
        ) capped
    ), spread AS (
        SELECT coalesce(sum((back - front) / 64 + 1), 0)::bigint AS n, min(created_at) AS oldest FROM lanes
    ), wait AS (
        SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox.waiting LIMIT 10001) w) AS n,
               (SELECT count(*) FROM (SELECT 1 FROM outbox.waiting
                                      WHERE NOT replay AND due_since > clock_timestamp() LIMIT 10001) w) AS future,
               (SELECT min(due_since) FROM outbox.waiting
                 WHERE NOT replay AND due_since <= clock_timestamp()) AS oldest
    ), gone AS (
        SELECT count(*) AS n FROM (SELECT 1 FROM outbox.dead LIMIT 10001) d
    )
    SELECT CASE WHEN hot.n > 10000 THEN greatest(hot.n, spread.n) ELSE hot.n END + wait.n AS pending,
           CASE WHEN hot.n > 10000 THEN greatest(hot.n, spread.n) ELSE hot.n END + wait.n - wait.future AS due,
           wait.n AS waiting,
           gone.n AS dead,
           -- created_at may be "infinity", which has no age yet, and "-infinity", which counts from 1970.
           coalesce(greatest(extract(epoch FROM clock_timestamp() - CASE
               WHEN isfinite(least(spread.oldest, wait.oldest)) THEN least(spread.oldest, wait.oldest)
               WHEN least(spread.oldest, wait.oldest) < 'epoch' THEN 'epoch'
           END), 0), 0)::double precision AS oldest_due_age_seconds,
           hot.n > 10000 OR wait.n > 10000 OR gone.n > 10000 AS pending_is_capped
    FROM hot, spread, wait, gone
$$;
COMMENT ON FUNCTION outbox.measure() IS 'What outbox.status shows.';
REVOKE EXECUTE ON FUNCTION outbox.measure() FROM PUBLIC;

CREATE VIEW outbox.status AS SELECT * FROM outbox.measure();
COMMENT ON VIEW outbox.status IS
    'State of the outbox in one row, for people and for monitoring when no relay is alive. Counts are exact up to 10,000.';
COMMENT ON COLUMN outbox.status.pending IS 'Committed, and neither sent nor dead; derived above 10,000.';
COMMENT ON COLUMN outbox.status.due IS 'Those of them that should have been sent by now.';
COMMENT ON COLUMN outbox.status.waiting IS 'Waiting for a retry, for available_at or behind an earlier message; at most 10,001.';
COMMENT ON COLUMN outbox.status.dead IS 'Given up; at most 10,001.';
COMMENT ON COLUMN outbox.status.oldest_due_age_seconds IS 'The lag: age of the oldest message that is due and not sent; 0 with none.';
COMMENT ON COLUMN outbox.status.pending_is_capped IS 'A count above passed 10,000 and is derived or cut there.';

-- Debezium's column names, for producers that come from its outbox event router or may go there.
CREATE VIEW outbox.debezium AS
    SELECT message_id AS id, aggregate_type AS aggregatetype, aggregate_id AS aggregateid, event_type AS type, payload
    FROM outbox.message;
COMMENT ON VIEW outbox.debezium IS
    'outbox.message under the column names of Debezium''s outbox event router; takes INSERTs, and a DELETE keeps the event.';

-- Debezium's producers write an event and delete it in the same transaction: the log has it. Here the row is the event.
CREATE FUNCTION outbox.kept() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    -- Counted as deleted: an ORM checks that.
    RETURN OLD;
END
$$;
COMMENT ON FUNCTION outbox.kept() IS 'Answers a DELETE from outbox.debezium, and deletes nothing.';

CREATE TRIGGER kept INSTEAD OF DELETE ON outbox.debezium FOR EACH ROW EXECUTE FUNCTION outbox.kept();

INSERT INTO outbox.migration (version, name) VALUES (1, 'outbox');

SELECT pg_catalog.set_config('search_path', pg_catalog.current_setting('outboxd.search_path'),
                             pg_catalog.current_setting('outboxd.transaction') OPERATOR(pg_catalog.=) 'yes');
