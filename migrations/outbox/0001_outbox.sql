-- outboxd, schema version 1: the outbox.
--
-- Plain SQL for any migration tool. It runs inside one transaction. It needs CREATE on the database, or an empty schema
-- of that name that it owns, and nothing else. Privileges for producers, relays and monitoring:
-- deploy/postgres/roles.sql.

-- PostgreSQL resolves a name without a schema along search_path. A role that may create in a schema of that path (on
-- PostgreSQL 14 every role may, in public) could create a function or an operator there that matches better than
-- PostgreSQL's own. So this file resolves names in pg_catalog only, and its last statement restores the caller's path.
-- Function bodies carry the schema in each name that is resolved at run time, or the function sets its own path.
-- Inside a transaction, the path and the setting outboxd.transaction last until the transaction ends.
SELECT pg_catalog.set_config('outboxd.search_path', pg_catalog.current_setting('search_path'), false);
SELECT pg_catalog.set_config('outboxd.transaction', 'yes', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp',
                             pg_catalog.current_setting('outboxd.transaction') OPERATOR(pg_catalog.=) 'yes');

-- A DBA may have created the schema for the role that runs this file. The role must own the schema.
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
COMMENT ON TABLE outbox.migration IS 'Migrations that ran here. A relay refuses a version that it does not know.';
COMMENT ON COLUMN outbox.migration.version IS 'Number at the start of the migration file''s name.';
COMMENT ON COLUMN outbox.migration.name IS 'Name of the migration file without its number.';
COMMENT ON COLUMN outbox.migration.checksum IS 'SHA-256 of the file, hexadecimal; NULL if a tool other than outboxd ran it.';
COMMENT ON COLUMN outbox.migration.applied_at IS 'Time of the migration.';

-- The hash stands for the key where the key's text would be too long for an index. Two keys with the same hash only wait
-- for each other.
CREATE FUNCTION outbox.key_hash(aggregate_type text, aggregate_id text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN hashtextextended(aggregate_id, hashtextextended(aggregate_type, 0));
COMMENT ON FUNCTION outbox.key_hash(text, text) IS
    'Hash of a key (aggregate type and id); NULL without an aggregate id, because such a message has no order.';

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
    -- tx comes before id: defaults are evaluated in column order, so a transaction has its id before it draws a
    -- position. If a transaction id was assigned after position L was drawn, then every transaction that can still own
    -- a position at or below L has an older id. outbox.lane.low_water depends on this.
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
    -- Computed once, while the value is in memory. To measure json that is stored compressed, a reader must decompress
    -- it: 60 small rows of 200 MB each would stop every claim that reads them.
    body_size      integer     NOT NULL GENERATED ALWAYS AS (
        coalesce(octet_length(binary_payload), octet_length(payload::text), 0)
    ) STORED,
    headers_size   integer     GENERATED ALWAYS AS (octet_length(headers::text)) STORED,
    sent_at        timestamptz,
    PRIMARY KEY (lane, id),
    CONSTRAINT message_has_one_payload CHECK (num_nonnulls(payload, binary_payload) = 1)
) WITH (
    -- Leaves room on the page for a second version of every row, which is longer by sent_at. The mark is then a
    -- heap-only update (sent_at is in no index), even while a snapshot keeps the first versions from being vacuumed.
    fillfactor = 45,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05
);
COMMENT ON TABLE outbox.message IS
    'One row for each event, inserted in the transaction of the business change that it reports.';
COMMENT ON COLUMN outbox.message.tx IS 'Transaction that last wrote the published columns. Do not set it.';
COMMENT ON COLUMN outbox.message.id IS 'Position: the order within a key. Do not set it.';
COMMENT ON COLUMN outbox.message.message_id IS
    'Permanent identity of the event: the AMQP message_id. The default carries the time, by which outboxd where finds the message; the rest is random, so that a restored database never reuses an id.';
COMMENT ON COLUMN outbox.message.aggregate_type IS 'Type of the entity that the event is about, for example order.';
COMMENT ON COLUMN outbox.message.aggregate_id IS
    'Id of that entity. With aggregate_type it is the key: messages of one key keep their order. NULL: no order.';
COMMENT ON COLUMN outbox.message.event_type IS 'Type of the event, for example created; the AMQP type.';
COMMENT ON COLUMN outbox.message.payload IS 'JSON body; its text reaches the broker byte for byte. Set exactly one of payload and binary_payload.';
COMMENT ON COLUMN outbox.message.binary_payload IS 'Body in any other format; set content_type with it.';
COMMENT ON COLUMN outbox.message.content_type IS 'Media type of the body.';
COMMENT ON COLUMN outbox.message.headers IS
    'JSON object, nested at most four levels: AMQP headers, W3C traceparent and tracestate, correlation_id.';
COMMENT ON COLUMN outbox.message.exchange IS 'Overrides the configured exchange.';
COMMENT ON COLUMN outbox.message.routing_key IS 'Overrides the configured routing key.';
COMMENT ON COLUMN outbox.message.available_at IS
    'Earliest time of the publish. A scheduled message is outside of its key''s order until then.';
COMMENT ON COLUMN outbox.message.created_at IS 'Time of the insert, by the database''s clock; the lag starts here.';
COMMENT ON COLUMN outbox.message.lane IS 'Hash slot of the key, or of message_id without an aggregate_id: 0 to 63.';
COMMENT ON COLUMN outbox.message.body_size IS 'Size of the body in bytes.';
COMMENT ON COLUMN outbox.message.headers_size IS 'Size of the headers'' JSON text in bytes.';
COMMENT ON COLUMN outbox.message.sent_at IS 'Time at which a relay recorded the broker''s confirm. Only relays write it.';

CREATE TABLE outbox.lane (
    lane         smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    low_water    bigint   NOT NULL DEFAULT 0,
    candidate    bigint,
    candidate_tx xid8,
    -- A claim reads the transaction id as a bigint.
    CONSTRAINT lane_candidate_is_whole CHECK ((candidate IS NULL) = (candidate_tx IS NULL)
                                              AND (candidate_tx < '9223372036854775808') IS NOT FALSE)
) WITH (fillfactor = 20);
COMMENT ON TABLE outbox.lane IS
    'One row for each lane. A relay works on a lane while it holds this row''s lock; no other lock protects the lane''s messages.';
COMMENT ON COLUMN outbox.lane.lane IS 'Number of the lane.';
COMMENT ON COLUMN outbox.lane.low_water IS
    'No message at or below this position is pending, and none can appear there.';
COMMENT ON COLUMN outbox.lane.candidate IS 'Position up to which low_water may follow the settled messages, once candidate_tx allows it.';
COMMENT ON COLUMN outbox.lane.candidate_tx IS
    'Transaction id assigned after candidate was drawn. Once every older transaction has ended, no message can appear at or below candidate.';

INSERT INTO outbox.lane (lane) SELECT generate_series(0, 63);

-- The checks refuse a record that people write by hand and that no claim, no probe and no audit would ever read or release.
CREATE TABLE outbox.waiting (
    lane       smallint    NOT NULL CHECK (lane BETWEEN 0 AND 63),
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
    redriven           integer     NOT NULL DEFAULT 0,
    PRIMARY KEY (lane, id),
    CONSTRAINT waiting_counts_are_not_negative CHECK (attempts >= 0 AND (failed_probes >= 0) IS NOT FALSE AND redriven >= 0),
    CONSTRAINT waiting_held_has_a_destination CHECK (cause <> 'held' OR num_nonnulls(destination, failed_probes) = 2),
    CONSTRAINT waiting_replay_is_marked CHECK (cause <> 'replay' OR replay)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
COMMENT ON TABLE outbox.waiting IS
    'Messages that must not be published now: they wait for a retry, for available_at, for their destination, or behind an earlier message of their key.';
COMMENT ON COLUMN outbox.waiting.lane IS 'Lane of the message.';
COMMENT ON COLUMN outbox.waiting.id IS 'Position of the message.';
COMMENT ON COLUMN outbox.waiting.message_id IS 'Identity of the message.';
COMMENT ON COLUMN outbox.waiting.key_hash IS 'outbox.key_hash of the message''s key; NULL without a key.';
COMMENT ON COLUMN outbox.waiting.cause IS
    'retry: an attempt failed. scheduled: available_at is in the future. behind: an earlier message of the key waits. held: every message to the destination fails. probe: chosen to test that destination. redrive, replay: requested by an operator. stranded: found below the mark by the audit.';
COMMENT ON COLUMN outbox.waiting.replay IS 'The message was sent before. A replay does not block its key.';
COMMENT ON COLUMN outbox.waiting.due_at IS 'Time of the next attempt; NULL while the message is behind another one, or held.';
COMMENT ON COLUMN outbox.waiting.due_since IS 'Time at which the message became due (created_at or available_at); the lag starts here.';
COMMENT ON COLUMN outbox.waiting.attempts IS 'Failed attempts that count against the limit.';
COMMENT ON COLUMN outbox.waiting.reason IS 'Reason code of the last failure.';
COMMENT ON COLUMN outbox.waiting.last_error IS 'Text of the last failure.';
COMMENT ON COLUMN outbox.waiting.destination IS
    'Hash of the exchange and routing key for which the message is, or was, held; see crates/core/src/circuit.rs.';
COMMENT ON COLUMN outbox.waiting.failed_probes IS
    'Failed probes of the destination at the time when the message was held. Later failed probes count as attempts of the message.';
COMMENT ON COLUMN outbox.waiting.redriven IS 'How often the message was redriven; 0 if it never was.';
CREATE INDEX waiting_held ON outbox.waiting (destination, id) WHERE cause = 'held' AND due_at IS NULL;
COMMENT ON INDEX outbox.waiting_held IS 'Held messages of a destination.';
CREATE INDEX waiting_spent ON outbox.waiting (destination, (attempts - failed_probes) DESC, id)
    WHERE cause = 'held' AND due_at IS NULL;
COMMENT ON INDEX outbox.waiting_spent IS 'Held messages of a destination, those with the most failures first.';
CREATE INDEX waiting_due ON outbox.waiting (lane, due_at) WHERE due_at IS NOT NULL;
COMMENT ON INDEX outbox.waiting_due IS 'Due messages of a lane.';
-- A scheduled message and a replay do not block their key.
CREATE INDEX waiting_key ON outbox.waiting (lane, key_hash, id)
    WHERE key_hash IS NOT NULL AND NOT replay AND cause <> 'scheduled';
COMMENT ON INDEX outbox.waiting_key IS 'Waiting messages of a key that block later ones.';
-- With the position, because many messages may be scheduled for one time, and a page of a list must not sort them all.
CREATE INDEX waiting_due_since ON outbox.waiting (due_since, lane, id) WHERE NOT replay;
COMMENT ON INDEX outbox.waiting_due_since IS 'The oldest waiting message, for the lag, and waiting messages by age, page by page.';

CREATE TABLE outbox.dead (
    lane       smallint    NOT NULL CHECK (lane BETWEEN 0 AND 63),
    id         bigint      NOT NULL,
    message_id uuid        NOT NULL,
    reason     text        NOT NULL,
    attempts   integer     NOT NULL,
    last_error text        NOT NULL,
    replay     boolean     NOT NULL DEFAULT false,
    died_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    redriven   integer     NOT NULL DEFAULT 0,
    PRIMARY KEY (lane, id)
);
COMMENT ON TABLE outbox.dead IS 'Dead messages with their reason, until they are redriven or discarded.';
COMMENT ON COLUMN outbox.dead.lane IS 'Lane of the message.';
COMMENT ON COLUMN outbox.dead.id IS 'Position of the message.';
COMMENT ON COLUMN outbox.dead.message_id IS 'Identity of the message.';
COMMENT ON COLUMN outbox.dead.reason IS 'Stable reason code.';
COMMENT ON COLUMN outbox.dead.attempts IS 'Number of attempts, including the last one.';
COMMENT ON COLUMN outbox.dead.last_error IS 'Text of the last failure, from the broker or the relay.';
COMMENT ON COLUMN outbox.dead.replay IS 'The failed message was a replay: it was sent before.';
COMMENT ON COLUMN outbox.dead.died_at IS 'Time at which the message became dead.';
COMMENT ON COLUMN outbox.dead.redriven IS 'How often the message was redriven before it died this time.';
CREATE INDEX dead_died_at ON outbox.dead (died_at, lane, id);
COMMENT ON INDEX outbox.dead_died_at IS 'Dead messages by age, page by page.';

CREATE TABLE outbox.operation (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    by_role    text        NOT NULL DEFAULT session_user,
    by_whom    text        NOT NULL,
    action     text        NOT NULL CHECK (action IN ('redrive', 'discard', 'retry-now', 'give-up', 'replay',
                                                                    'prune')),
    why        text        NOT NULL,
    selection  text        NOT NULL,
    affected   bigint      NOT NULL CHECK (affected >= 0),
    message_ids uuid[]     NOT NULL DEFAULT '{}',
    finished_at timestamptz,
    CONSTRAINT operation_lists_what_it_affected CHECK (cardinality(message_ids) <= least(affected, 1000))
);
COMMENT ON TABLE outbox.operation IS 'Manual changes by operators: who, when, why, and which messages.';
COMMENT ON COLUMN outbox.operation.id IS 'Order of the operations.';
COMMENT ON COLUMN outbox.operation.at IS 'Time of the operation''s first change.';
COMMENT ON COLUMN outbox.operation.by_role IS 'Database role that ran the operation.';
COMMENT ON COLUMN outbox.operation.by_whom IS 'Person or system, as given to the command.';
COMMENT ON COLUMN outbox.operation.action IS 'Type of the operation.';
COMMENT ON COLUMN outbox.operation.why IS 'Reason, as given to the command.';
COMMENT ON COLUMN outbox.operation.selection IS 'Filters that selected the messages.';
COMMENT ON COLUMN outbox.operation.affected IS 'Number of affected messages.';
COMMENT ON COLUMN outbox.operation.message_ids IS 'Ids of the affected messages, at most 1,000.';
COMMENT ON COLUMN outbox.operation.finished_at IS
    'Time at which the command had done all of it; NULL while it runs, and for ever if it ended early.';

-- A command has one record, and adds to it in the transaction of each of its steps. The roles that run commands may not
-- UPDATE the table: this function only adds, to a record of the same login role that is not finished.
CREATE FUNCTION outbox.recorded(operation_id bigint, messages bigint, ids uuid[], finished boolean) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    AS $$
    UPDATE outbox.operation o
    SET affected = o.affected + recorded.messages,
        message_ids = CASE WHEN cardinality(o.message_ids) >= 1000 THEN o.message_ids
                           ELSE (o.message_ids || recorded.ids)[1:1000] END,
        finished_at = CASE WHEN recorded.finished THEN clock_timestamp() END
    WHERE o.id = recorded.operation_id AND o.by_role = session_user AND o.finished_at IS NULL AND recorded.messages >= 0
    RETURNING true
$$;
COMMENT ON FUNCTION outbox.recorded(bigint, bigint, uuid[], boolean) IS
    'Adds a step to the record of a command that runs, or ends the record. Returns NULL if there is no such record.';
REVOKE EXECUTE ON FUNCTION outbox.recorded(bigint, bigint, uuid[], boolean) FROM PUBLIC;

-- Failures of one cause differ in ids, times and numbers. What has a digit is taken for one of these: a quoted text, a
-- UUID, a word.
CREATE FUNCTION outbox.without_ids(said text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN regexp_replace(regexp_replace(regexp_replace(
        left(said, 1000),
        '''[^'']*[0-9][^'']*''|"[^"]*[0-9][^"]*"', '?', 'g'),
        '[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[[:alnum:]_]*[0-9][[:alnum:]_]*', '?', 'g'),
        '[?]([-.,:;/+]*[?])+', '?', 'g');
COMMENT ON FUNCTION outbox.without_ids(text) IS 'A text whose ids, numbers and times are replaced with a question mark.';

CREATE FUNCTION outbox.failure_group(
    reason text, exchange text, routing_key text, aggregate_type text, event_type text, error text
) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    -- The separator is no character of a name.
    RETURN left(lpad(to_hex(hashtextextended(
        coalesce(reason, '') || chr(31) || coalesce(left(exchange, 256), '') || chr(31)
        || coalesce(outbox.without_ids(left(routing_key, 256)),
                    coalesce(left(aggregate_type, 256), '') || '.' || coalesce(left(event_type, 256), ''))
        || chr(31) || coalesce(outbox.without_ids(error), ''), 0)), 16, '0'), 10);
COMMENT ON FUNCTION outbox.failure_group(text, text, text, text, text, text) IS
    'Group of a failed message: the same for messages that failed for one cause. outboxd failures shows the groups.';

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
    'Running relays, for people to read. One decision uses this table: which relay continues the audit.';
COMMENT ON COLUMN outbox.relay.instance IS 'Name of the process; a new one at each start.';
COMMENT ON COLUMN outbox.relay.host IS 'Host of the process.';
COMMENT ON COLUMN outbox.relay.version IS 'Version of outboxd.';
COMMENT ON COLUMN outbox.relay.workers IS 'Number of its workers.';
COMMENT ON COLUMN outbox.relay.state IS 'State that the relay last reported: starting, publishing, blocked, broker_down, cannot_mark, cannot_read, stopping.';
COMMENT ON COLUMN outbox.relay.started_at IS 'Time of the start.';
COMMENT ON COLUMN outbox.relay.seen_at IS 'Time of the last report; a running relay reports every ten seconds.';
COMMENT ON COLUMN outbox.relay.audited_at IS 'End of its last complete audit of outbox.message; NULL before the first.';
COMMENT ON COLUMN outbox.relay.stranded IS 'Unsent messages below the mark that it has found and not yet filed.';

-- NOTIFY takes a lock on the whole database cluster at commit, so an insert calls it only if a relay sleeps. A sleeping
-- relay holds this advisory lock exclusively. While a relay is awake, the shared lock is granted and kept until the
-- transaction ends. So the relay cannot fall asleep between this insert and its commit.
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
COMMENT ON FUNCTION outbox.wake() IS 'Wakes a sleeping relay at commit; nearly free while a relay is awake.';

CREATE TRIGGER wake AFTER INSERT ON outbox.message FOR EACH STATEMENT EXECUTE FUNCTION outbox.wake();

-- The functions below prove their writes: a trigger or a rule of a person can let a statement succeed without effect. An
-- exception rolls the person's statement back. FOUND is no proof, because a trigger that returns OLD keeps the old row.

-- After TRUNCATE the old marks would hide new rows: with RESTART IDENTITY, positions start below the marks. So the
-- marks are reset, and the rows' entries in waiting and dead are deleted, in the same transaction. This cannot deadlock
-- with a relay: a relay that holds a lane also holds ROW EXCLUSIVE on outbox.message, so no lane is locked while
-- TRUNCATE holds that table.
CREATE FUNCTION outbox.truncated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    kept text;
BEGIN
    -- A table that was outbox.message before it was copied and renamed keeps this trigger.
    IF TG_RELID IS DISTINCT FROM to_regclass('outbox.message') THEN
        RETURN NULL;
    END IF;
    UPDATE outbox.lane SET low_water = 0, candidate = NULL, candidate_tx = NULL;
    DELETE FROM outbox.waiting;
    DELETE FROM outbox.dead;
    kept := CASE WHEN EXISTS (SELECT FROM outbox.lane l WHERE l.low_water <> 0 OR l.candidate IS NOT NULL) THEN 'lane'
                 WHEN EXISTS (SELECT FROM outbox.waiting) THEN 'waiting'
                 WHEN EXISTS (SELECT FROM outbox.dead) THEN 'dead' END;
    IF kept IS NOT NULL THEN
        RAISE EXCEPTION 'outbox.truncated: rows of outbox.% stay as they were', kept
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'outbox', TABLE = kept,
                  HINT = format('A trigger or a rule on outbox.%s keeps its rows as they are. Drop it, or let it pass UPDATEs and DELETEs.', kept);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.truncated() IS 'Resets all marks and deletes the filed entries when outbox.message is truncated.';
REVOKE EXECUTE ON FUNCTION outbox.truncated() FROM PUBLIC;

CREATE TRIGGER truncated AFTER TRUNCATE ON outbox.message FOR EACH STATEMENT EXECUTE FUNCTION outbox.truncated();

-- A correction of a row's key can change its lane. The entries in waiting and dead follow: a dead message stays dead
-- until it is redriven, and a waiting message must not wait under its old key, for its old destination or until its old
-- time. An entry of an earlier message at this position stays as it is. The mark (sent_at) is not one of the trigger's
-- columns.
CREATE FUNCTION outbox.moved() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    postponed CONSTANT boolean := NEW.available_at IS DISTINCT FROM OLD.available_at
                                  AND coalesce(NEW.available_at > clock_timestamp(), false);
    filed        outbox.waiting;
    follows_time boolean;
    kept         text;
    stored       boolean;
BEGIN
    -- The lock comes first: it tells a record that a trigger kept from one that a relay removes meanwhile.
    SELECT w.* INTO filed FROM outbox.waiting w
    WHERE w.lane = OLD.lane AND w.id = OLD.id AND w.message_id = OLD.message_id
    FOR UPDATE;
    IF FOUND THEN
        follows_time := NOT filed.replay AND (postponed OR filed.cause = 'scheduled');
        filed.due_at := CASE WHEN filed.cause = 'replay' THEN filed.due_at
                             WHEN follows_time THEN coalesce(NEW.available_at, clock_timestamp())
                             ELSE clock_timestamp() END;
        filed.due_since := CASE WHEN follows_time THEN greatest(NEW.created_at, NEW.available_at)
                                ELSE filed.due_since END;
        -- The reason for the wait (an attempt, a destination, an earlier message of the old key) no longer applies. The
        -- next read decides whether a message of the new key blocks this one.
        filed.cause := CASE WHEN postponed AND NOT filed.replay THEN 'scheduled'
                            WHEN filed.cause IN ('held', 'probe') THEN 'retry'
                            ELSE filed.cause END;
        filed.key_hash := outbox.key_hash(NEW.aggregate_type, NEW.aggregate_id);
        UPDATE outbox.waiting w
        SET lane = NEW.lane, id = NEW.id, message_id = NEW.message_id, key_hash = filed.key_hash, cause = filed.cause,
            destination = NULL, failed_probes = NULL, due_at = filed.due_at, due_since = filed.due_since
        WHERE w.lane = OLD.lane AND w.id = OLD.id AND w.message_id = OLD.message_id
        RETURNING (w.lane, w.id, w.message_id, w.key_hash, w.cause, w.destination, w.due_at, w.due_since)
                  IS NOT DISTINCT FROM
                  (NEW.lane, NEW.id, NEW.message_id, filed.key_hash, filed.cause, NULL::bigint, filed.due_at,
                   filed.due_since) INTO stored;
        IF stored IS NOT TRUE THEN
            kept := 'waiting';
        END IF;
    END IF;
    IF (NEW.lane, NEW.id, NEW.message_id) IS DISTINCT FROM (OLD.lane, OLD.id, OLD.message_id) THEN
        PERFORM FROM outbox.dead d WHERE d.lane = OLD.lane AND d.id = OLD.id AND d.message_id = OLD.message_id FOR UPDATE;
        IF FOUND THEN
            UPDATE outbox.dead d
            SET lane = NEW.lane, id = NEW.id, message_id = NEW.message_id
            WHERE d.lane = OLD.lane AND d.id = OLD.id AND d.message_id = OLD.message_id
            RETURNING (d.lane, d.id, d.message_id) IS NOT DISTINCT FROM (NEW.lane, NEW.id, NEW.message_id) INTO stored;
            IF stored IS NOT TRUE THEN
                kept := 'dead';
            END IF;
        END IF;
    END IF;
    IF kept IS NOT NULL THEN
        RAISE EXCEPTION 'outbox.moved: the record at position % in outbox.% stays as it was', OLD.id, kept
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'outbox', TABLE = kept,
                  HINT = format('A trigger or a rule on outbox.%s keeps its rows as they are. Drop it, or let it pass UPDATEs.', kept);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.moved() IS 'Corrects a message''s entries in waiting and dead when its key, id, route or available_at is corrected in place.';
REVOKE EXECUTE ON FUNCTION outbox.moved() FROM PUBLIC;

CREATE TRIGGER moved AFTER UPDATE OF id, message_id, aggregate_type, aggregate_id, event_type, exchange, routing_key,
                                     available_at
    ON outbox.message FOR EACH ROW
    WHEN (OLD.lane <> NEW.lane OR OLD.id <> NEW.id OR OLD.message_id <> NEW.message_id
          OR OLD.aggregate_type <> NEW.aggregate_type OR OLD.aggregate_id IS DISTINCT FROM NEW.aggregate_id
          OR OLD.event_type <> NEW.event_type OR OLD.exchange IS DISTINCT FROM NEW.exchange
          OR OLD.routing_key IS DISTINCT FROM NEW.routing_key OR OLD.available_at IS DISTINCT FROM NEW.available_at)
    EXECUTE FUNCTION outbox.moved();

-- A relay does not lock the rows that it publishes. If a message is corrected after the relay has read it, the relay
-- must not mark it as sent: the correction would never be published. The settle cannot compare contents, so it compares
-- tx with the tx that the claim read.
-- AFTER: with a BEFORE trigger PostgreSQL would lock each row before its mark, which costs time.
CREATE FUNCTION outbox.corrected() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    UPDATE outbox.message m SET tx = pg_current_xact_id() WHERE m.lane = NEW.lane AND m.id = NEW.id AND m.sent_at IS NULL;
    IF EXISTS (SELECT FROM outbox.message m WHERE m.lane = NEW.lane AND m.id = NEW.id AND m.sent_at IS NULL
                                              AND m.tx <> pg_current_xact_id()) THEN
        RAISE EXCEPTION 'outbox.corrected: the correction at position % is not recorded in outbox.message', NEW.id
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'outbox', TABLE = 'message',
                  HINT = 'A trigger or a rule on outbox.message keeps its rows as they are. Drop it, or let it pass UPDATEs of tx.';
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.corrected() IS
    'Records the transaction that corrected an unsent message, so that a relay that read the old version does not mark it as sent.';
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
    -- Drawn here, because RETURNING needs SELECT, and a producer may have only INSERT.
    new_id pg_catalog.uuid := coalesce(enqueue.message_id, outbox.uuid_v7());
BEGIN
    INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, payload, headers,
                                exchange, routing_key, available_at, content_type)
    VALUES (new_id, enqueue.aggregate_type, enqueue.aggregate_id, enqueue.event_type, enqueue.payload,
            enqueue.headers, enqueue.exchange, enqueue.routing_key, enqueue.available_at,
            coalesce(enqueue.content_type, 'application/json'));
    IF NOT FOUND THEN
        RAISE EXCEPTION 'outbox.enqueue: the event % was not written', new_id
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'outbox', TABLE = 'message',
                  HINT = 'A trigger or a rule on outbox.message drops new rows. Drop it, or let it pass INSERTs.';
    END IF;
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
    IF NOT FOUND THEN
        RAISE EXCEPTION 'outbox.enqueue_binary: the event % was not written', new_id
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'outbox', TABLE = 'message',
                  HINT = 'A trigger or a rule on outbox.message drops new rows. Drop it, or let it pass INSERTs.';
    END IF;
    RETURN new_id;
END
$$;
COMMENT ON FUNCTION outbox.enqueue_binary(text, text, text, bytea, text, json, uuid, text, text, timestamptz) IS
    'Same as outbox.enqueue, for a body that is not JSON.';

-- Cheap at any backlog: a few index probes for each lane, and counts that stop at 10,000. Above that, the pending count
-- is estimated from the distance between positions (keys spread evenly over the 64 lanes).
--
-- A function can pin the plan: compiling the query (jit) or sorting a whole lane (bitmap) costs more than the answer.
-- It reads tables that a monitoring role may not read, hence SECURITY DEFINER.
CREATE FUNCTION outbox.measure(
    OUT pending bigint, OUT due bigint, OUT waiting bigint, OUT dead bigint,
    OUT oldest_due_age_seconds double precision, OUT pending_is_capped boolean
)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    -- Without this setting, a policy that is forced on the owner would hide the rows, and the counts would be 0.
    SET row_security = off
    SET jit = off
    SET enable_bitmapscan = off
    AS $$
    WITH lane AS MATERIALIZED (
        -- If nothing is filed above the mark, no message needs a check against waiting and dead. A deleted lane counts
        -- from its beginning, because a relay also reads it from there.
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
                   OR NOT EXISTS (SELECT FROM outbox.waiting w
                                  WHERE w.lane = m.lane AND w.id = m.id AND w.message_id = m.message_id OFFSET 0))
              AND (NOT l.some_dead
                   OR NOT EXISTS (SELECT FROM outbox.dead d
                                  WHERE d.lane = m.lane AND d.id = m.id AND d.message_id = m.message_id OFFSET 0))
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
                       OR NOT EXISTS (SELECT FROM outbox.waiting w
                                      WHERE w.lane = m.lane AND w.id = m.id AND w.message_id = m.message_id OFFSET 0))
                  AND (NOT l.some_dead
                       OR NOT EXISTS (SELECT FROM outbox.dead d
                                      WHERE d.lane = m.lane AND d.id = m.id AND d.message_id = m.message_id OFFSET 0))
                ORDER BY m.id LIMIT 10001
            ) one
            LIMIT 10001
        ) capped
    ), spread AS (
        -- numeric, with a limit: the difference of two positions can be larger than a bigint.
        SELECT least(coalesce(sum(div(back::numeric - front, 64) + 1), 0), 1000000000000000000)::bigint AS n,
               min(created_at) AS oldest
        FROM lanes
    ), present AS MATERIALIZED (
        -- clock_timestamp() is volatile, so no index serves a comparison with it.
        SELECT clock_timestamp() AS at
    ), wait AS (
        SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox.waiting LIMIT 10001) w) AS n,
               -- Each with a limit of its own: beside a million scheduled messages, those that are due still count.
               (SELECT count(*) FROM (SELECT 1 FROM outbox.waiting
                                      WHERE NOT replay AND due_since <= (SELECT at FROM present) LIMIT 10001) w)
               -- A clock that was set back wrote a time of a message that is due.
               + (SELECT count(*) FROM (SELECT cause, due_at FROM outbox.waiting
                                        WHERE NOT replay AND due_since > (SELECT at FROM present)
                                        ORDER BY due_since LIMIT 10001) w
                   WHERE cause <> 'scheduled' OR due_at IS NULL OR due_at <= (SELECT at FROM present))
               -- A replay is due at its own time.
               + (SELECT count(*) FROM (SELECT near.replay
                                        FROM lane l
                                        CROSS JOIN LATERAL (
                                            SELECT w.replay FROM outbox.waiting w
                                            WHERE w.lane = l.lane AND w.due_at <= (SELECT at FROM present)
                                            ORDER BY w.due_at LIMIT 10001
                                        ) near LIMIT 10001) w
                   WHERE replay) AS due,
               (SELECT min(due_since) FROM outbox.waiting
                 WHERE NOT replay AND due_since <= (SELECT at FROM present)) AS oldest
    ), gone AS (
        SELECT count(*) AS n FROM (SELECT 1 FROM outbox.dead LIMIT 10001) d
    )
    SELECT CASE WHEN hot.n > 10000 THEN greatest(hot.n, spread.n) ELSE hot.n END + wait.n AS pending,
           CASE WHEN hot.n > 10000 THEN greatest(hot.n, spread.n) ELSE hot.n END + least(wait.due, wait.n) AS due,
           wait.n AS waiting,
           gone.n AS dead,
           -- created_at may be "infinity", which has no age yet, or "-infinity", whose age counts from 1970.
           coalesce(greatest(extract(epoch FROM clock_timestamp() - CASE
               WHEN isfinite(least(spread.oldest, wait.oldest)) THEN least(spread.oldest, wait.oldest)
               WHEN least(spread.oldest, wait.oldest) < 'epoch' THEN 'epoch'
           END), 0), 0)::double precision AS oldest_due_age_seconds,
           hot.n > 10000 OR wait.n > 10000 OR gone.n > 10000 AS pending_is_capped
    FROM hot, spread, wait, gone
$$;
COMMENT ON FUNCTION outbox.measure() IS 'The values of outbox.status.';
REVOKE EXECUTE ON FUNCTION outbox.measure() FROM PUBLIC;

CREATE VIEW outbox.status AS SELECT * FROM outbox.measure();
COMMENT ON VIEW outbox.status IS
    'State of the outbox in one row, for people, and for monitoring while no relay runs. Counts are exact up to 10,000.';
COMMENT ON COLUMN outbox.status.pending IS 'Committed messages, neither sent nor dead; estimated above 10,000.';
COMMENT ON COLUMN outbox.status.due IS 'Pending messages that should have been sent by now.';
COMMENT ON COLUMN outbox.status.waiting IS 'Messages that wait for a retry, for available_at, for their destination, or behind an earlier message; at most 10,001.';
COMMENT ON COLUMN outbox.status.dead IS 'Dead messages; at most 10,001.';
COMMENT ON COLUMN outbox.status.oldest_due_age_seconds IS 'The lag: age of the oldest message that is due and not sent; 0 if there is none.';
COMMENT ON COLUMN outbox.status.pending_is_capped IS 'One of these counts exceeded 10,000 and is estimated or capped.';

-- Debezium's column names, for producers that come from Debezium's outbox event router or may move to it.
-- PostgreSQL would pass a DELETE or an UPDATE through a view of one table to that table's rows, as soon as somebody makes the
-- view again without its triggers. The join with one row prevents it: without the triggers each write is refused.
CREATE VIEW outbox.debezium AS
    SELECT m.message_id AS id, m.aggregate_type AS aggregatetype, m.aggregate_id AS aggregateid, m.event_type AS type,
           m.payload
    FROM outbox.message m
    CROSS JOIN (SELECT 1 AS n) AS one;
COMMENT ON VIEW outbox.debezium IS
    'outbox.message under the column names of Debezium''s outbox event router. It accepts INSERT; a DELETE does not delete the event.';

-- SECURITY DEFINER: a producer needs INSERT on the view alone.
CREATE FUNCTION outbox.written() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, payload)
    VALUES (coalesce(NEW.id, outbox.uuid_v7()), NEW.aggregatetype, NEW.aggregateid, NEW.type, NEW.payload)
    RETURNING message_id INTO NEW.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'outbox.written: an event through outbox.debezium was not written'
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'outbox', TABLE = 'message',
                  HINT = 'A trigger or a rule on outbox.message drops new rows. Drop it, or let it pass INSERTs.';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION outbox.written() IS 'Writes an event that was inserted into outbox.debezium.';
REVOKE EXECUTE ON FUNCTION outbox.written() FROM PUBLIC;

CREATE TRIGGER written INSTEAD OF INSERT ON outbox.debezium FOR EACH ROW EXECUTE FUNCTION outbox.written();

-- Debezium's producers insert an event and delete it in the same transaction, because Debezium reads the log. Here the
-- row itself must stay.
CREATE FUNCTION outbox.kept() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    -- The row counts as deleted, because ORMs check the number of deleted rows.
    RETURN OLD;
END
$$;
COMMENT ON FUNCTION outbox.kept() IS 'Accepts a DELETE from outbox.debezium and deletes nothing.';

CREATE TRIGGER kept INSTEAD OF DELETE ON outbox.debezium FOR EACH ROW EXECUTE FUNCTION outbox.kept();

INSERT INTO outbox.migration (version, name) VALUES (1, 'outbox');

SELECT pg_catalog.set_config('search_path', pg_catalog.current_setting('outboxd.search_path'),
                             pg_catalog.current_setting('outboxd.transaction') OPERATOR(pg_catalog.=) 'yes');
