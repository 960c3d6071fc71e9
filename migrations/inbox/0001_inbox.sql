-- outboxd, inbox schema version 1: each business operation applied once, whatever the broker repeats.
--
-- Plain SQL for any migration tool; it runs inside one transaction and needs CREATE on the database, or a schema of that
-- name of its own, and nothing else. It belongs into the *consumer's* database, beside the tables that the consumer
-- changes. Privileges: deploy/postgres/inbox_roles.sql.

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
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'inbox') THEN
        CREATE SCHEMA inbox;
    END IF;
END
$$;
COMMENT ON SCHEMA inbox IS 'Idempotent consumer: what was applied, in the transaction that applied it.';

CREATE TABLE inbox.migration (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE inbox.migration IS 'Which migrations ran here.';
COMMENT ON COLUMN inbox.migration.version IS 'The number in front of the migration file''s name.';
COMMENT ON COLUMN inbox.migration.name IS 'The migration file''s name without its number.';
COMMENT ON COLUMN inbox.migration.checksum IS 'SHA-256 of the file, hexadecimal; NULL when another tool than outboxd ran it.';
COMMENT ON COLUMN inbox.migration.applied_at IS 'When it ran.';

-- Domains, not CHECKs of the table: PostgreSQL reads the text of those anew for every INSERT, which took as long as
-- the INSERT itself (20 us with them, 11 us so); a domain's are kept by the session.
--
-- Names are compared byte by byte: a uniqueness that hung on the system's collation would be lost when an upgrade of
-- the system changes it, until the index is rebuilt.
CREATE DOMAIN inbox.name AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 255);
COMMENT ON DOMAIN inbox.name IS 'A consumer or an idempotency key: 1 to 255 bytes.';
CREATE DOMAIN inbox.digest AS bytea CHECK (octet_length(VALUE) = 32);
COMMENT ON DOMAIN inbox.digest IS 'SHA-256.';
CREATE DOMAIN inbox.state AS text CHECK (VALUE IN ('applied', 'stale', 'begun'));
COMMENT ON DOMAIN inbox.state IS 'See inbox.message.state.';
CREATE DOMAIN inbox.result AS bytea CHECK (octet_length(VALUE) <= 1048576);
COMMENT ON DOMAIN inbox.result IS 'What an operation returned: at most 1 MiB.';

CREATE TABLE inbox.message (
    consumer        inbox.name   NOT NULL,
    idempotency_key inbox.name   NOT NULL,
    fingerprint     inbox.digest NOT NULL,
    state           inbox.state  NOT NULL,
    result          inbox.result,
    result_type     text,
    claimed_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    recorded_at     timestamptz,
    PRIMARY KEY (consumer, idempotency_key)
);
COMMENT ON TABLE inbox.message IS
    'One row per business operation that a consumer applied. Its primary key is what makes a second application impossible.';
COMMENT ON COLUMN inbox.message.consumer IS 'Who applied it; two consumers of one message are two operations.';
COMMENT ON COLUMN inbox.message.idempotency_key IS
    'Names the operation: the message id, or a business key (pay_123) that stays the same when a fact is published twice.';
COMMENT ON COLUMN inbox.message.fingerprint IS
    'SHA-256 over type, content type and body. The same key with another fingerprint is a conflict, never a duplicate.';
COMMENT ON COLUMN inbox.message.state IS
    'applied: done. stale: passed over, because a later position of its entity was applied before. begun: an external effect was begun; without a record its outcome is in doubt.';
COMMENT ON COLUMN inbox.message.result IS 'What the operation returned, for duplicates; at most 1 MiB.';
COMMENT ON COLUMN inbox.message.result_type IS 'Media type of the result.';
COMMENT ON COLUMN inbox.message.claimed_at IS 'When it was claimed, by the database''s clock.';
COMMENT ON COLUMN inbox.message.recorded_at IS 'When its result was recorded; pruning counts from here, and from claimed_at without one.';
CREATE INDEX message_claimed ON inbox.message (consumer, claimed_at);
COMMENT ON INDEX inbox.message_claimed IS 'What may be old enough to be pruned.';
CREATE INDEX message_begun ON inbox.message (consumer, claimed_at) WHERE state = 'begun';
COMMENT ON INDEX inbox.message_begun IS 'External effects whose outcome is in doubt.';

CREATE TABLE inbox.entity (
    consumer   text        COLLATE "C" NOT NULL,
    entity     text        COLLATE "C" NOT NULL,
    position   bigint      NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, entity)
) WITH (fillfactor = 70);
COMMENT ON TABLE inbox.entity IS 'Last position applied for each entity of consumers that ask for the stale guard.';
COMMENT ON COLUMN inbox.entity.consumer IS 'Whose guard it is.';
COMMENT ON COLUMN inbox.entity.entity IS 'The entity, for example the outbox-key header.';
COMMENT ON COLUMN inbox.entity.position IS 'Highest position applied, for example the outbox-position header.';
COMMENT ON COLUMN inbox.entity.applied_at IS 'When.';

CREATE TABLE inbox.attempt (
    consumer        text        COLLATE "C" NOT NULL,
    idempotency_key text        COLLATE "C" NOT NULL,
    attempts        integer     NOT NULL DEFAULT 1,
    last_error      text        NOT NULL,
    first_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, idempotency_key)
) WITH (fillfactor = 70);
COMMENT ON TABLE inbox.attempt IS
    'Failed attempts, counted in transactions of their own: the handler''s transaction takes its count with it when it is rolled back.';
COMMENT ON COLUMN inbox.attempt.consumer IS 'Whose attempt it was.';
COMMENT ON COLUMN inbox.attempt.idempotency_key IS 'Of which operation.';
COMMENT ON COLUMN inbox.attempt.attempts IS 'How many failed.';
COMMENT ON COLUMN inbox.attempt.last_error IS 'What the last one said.';
COMMENT ON COLUMN inbox.attempt.first_at IS 'When the first one failed.';
COMMENT ON COLUMN inbox.attempt.last_at IS 'When the last one failed.';

-- Every language computes the same fingerprint, so that a service may be rewritten in another one. The parts carry
-- their lengths: ('ab', 'c') and ('a', 'bc') are two things.
CREATE FUNCTION inbox.fingerprint(type text, content_type text, body bytea) RETURNS bytea
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN sha256(
        int8send(length(convert_to(coalesce(type, ''), 'UTF8'))) || convert_to(coalesce(type, ''), 'UTF8') ||
        int8send(length(convert_to(coalesce(content_type, ''), 'UTF8'))) || convert_to(coalesce(content_type, ''), 'UTF8') ||
        int8send(length(coalesce(body, ''))) || coalesce(body, ''));
COMMENT ON FUNCTION inbox.fingerprint(text, text, bytea) IS
    'SHA-256 over type, content type and raw body, each behind its length in bytes (8, big-endian); a missing one counts as empty.';

-- A literal, or a parameter without a type, given for bytea is read as an escape: its backslashes would disappear. Beside
-- this function PostgreSQL takes it for text. Bytes in hexadecimal are the one text that is likely not meant as such.
CREATE FUNCTION inbox.bytes(given text) RETURNS bytea
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    AS $$
BEGIN
    IF pg_catalog.starts_with(given, E'\\x') THEN
        RAISE EXCEPTION 'inbox: text that begins with a backslash and an x may be meant as bytes in hexadecimal'
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Cast bytes to bytea, as in $3::bytea; for text say convert_to($3, ''UTF8'').';
    END IF;
    RETURN pg_catalog.convert_to(given, 'UTF8');
END
$$;
COMMENT ON FUNCTION inbox.bytes(text) IS 'The UTF-8 bytes of a text; refused where it may be bytes in hexadecimal.';

CREATE FUNCTION inbox.fingerprint(type text, content_type text, body text) RETURNS bytea
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN inbox.fingerprint(type, content_type, inbox.bytes(body));
COMMENT ON FUNCTION inbox.fingerprint(text, text, text) IS
    'The same of a body that is text: of its UTF-8 bytes. Give a body that is not UTF-8 as bytea.';

-- Claims an operation in the caller's transaction. Exactly one of any number of concurrent callers is told `first`;
-- the others wait until its transaction ends, and are then told `duplicate`, or `first` if it was rolled back.
--
-- The insert and the look are two statements: in one, a caller that waited would see neither its own row nor the
-- one it waited for.
--
-- Names carry their schemas: a search_path of the function's own would cost 4 us a call.
CREATE FUNCTION inbox.claim(
    consumer        text,
    idempotency_key text,
    fingerprint     bytea,
    entity          text   DEFAULT NULL,
    position_       bigint DEFAULT NULL,
    OUT outcome     text,
    OUT result      bytea,
    OUT result_type text
)
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    found_row inbox.message;
BEGIN
    INSERT INTO inbox.message AS m (consumer, idempotency_key, fingerprint, state)
    VALUES (claim.consumer, claim.idempotency_key, claim.fingerprint, 'applied')
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        outcome := 'first';
        IF claim.entity IS NOT NULL AND claim.position_ IS NOT NULL THEN
            INSERT INTO inbox.entity AS e (consumer, entity, position)
            VALUES (claim.consumer, claim.entity, claim.position_)
            ON CONFLICT (consumer, entity) DO UPDATE
                SET position = excluded.position, applied_at = pg_catalog.clock_timestamp()
                WHERE e.position OPERATOR(pg_catalog.<) excluded.position;
            IF NOT FOUND THEN
                UPDATE inbox.message m SET state = 'stale', recorded_at = pg_catalog.clock_timestamp()
                WHERE m.consumer OPERATOR(pg_catalog.=) claim.consumer
                  AND m.idempotency_key OPERATOR(pg_catalog.=) claim.idempotency_key;
                outcome := 'stale';
            END IF;
        END IF;
        RETURN;
    END IF;
    SELECT m.* INTO found_row FROM inbox.message m
    WHERE m.consumer OPERATOR(pg_catalog.=) claim.consumer
      AND m.idempotency_key OPERATOR(pg_catalog.=) claim.idempotency_key;
    IF NOT FOUND THEN
        -- Pruned between the two statements.
        RAISE EXCEPTION 'inbox.claim: % / % disappeared while it was claimed', claim.consumer, claim.idempotency_key
            USING ERRCODE = 'serialization_failure', HINT = 'Roll back and try again.';
    END IF;
    outcome := CASE
        WHEN found_row.fingerprint OPERATOR(pg_catalog.<>) claim.fingerprint THEN 'conflict'
        WHEN found_row.state OPERATOR(pg_catalog.=) 'begun' THEN 'in_doubt'
        WHEN found_row.state OPERATOR(pg_catalog.=) 'stale' THEN 'stale'
        ELSE 'duplicate'
    END;
    IF outcome OPERATOR(pg_catalog.=) 'duplicate' THEN
        result := found_row.result;
        result_type := found_row.result_type;
    END IF;
END
$$;
COMMENT ON FUNCTION inbox.claim(text, text, bytea, text, bigint) IS
    'Claims an operation in the caller''s transaction: first, duplicate (with its result), conflict, stale or in_doubt.';

CREATE FUNCTION inbox.complete(consumer text, idempotency_key text, result bytea, result_type text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
BEGIN
    UPDATE inbox.message m
    SET result = complete.result, result_type = complete.result_type, recorded_at = pg_catalog.clock_timestamp()
    WHERE m.consumer OPERATOR(pg_catalog.=) complete.consumer AND m.idempotency_key OPERATOR(pg_catalog.=) complete.idempotency_key
      AND m.state OPERATOR(pg_catalog.=) 'applied';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'inbox.complete: % / % was not claimed', complete.consumer, complete.idempotency_key
            USING ERRCODE = 'no_data_found', HINT = 'Call inbox.claim before, in the same transaction.';
    END IF;
END
$$;
COMMENT ON FUNCTION inbox.complete(text, text, bytea, text) IS
    'Stores the result of a claimed operation, in the same transaction; duplicates get it back.';

CREATE FUNCTION inbox.complete(consumer text, idempotency_key text, result text, result_type text DEFAULT NULL)
    RETURNS void
    LANGUAGE sql
    RETURN inbox.complete(consumer, idempotency_key, inbox.bytes(result), result_type);
COMMENT ON FUNCTION inbox.complete(text, text, text, text) IS 'The same with a result that is text; its UTF-8 bytes are stored.';

-- External effects (a payment provider, an e-mail): the database cannot roll them back, so their beginning is
-- committed before, and their outcome after. Whoever finds a beginning without an outcome is told so, and nothing is
-- repeated silently.
CREATE FUNCTION inbox.begin_effect(
    consumer        text,
    idempotency_key text,
    fingerprint     bytea,
    OUT outcome     text,
    OUT result      bytea,
    OUT result_type text
)
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    found_row inbox.message;
BEGIN
    INSERT INTO inbox.message AS m (consumer, idempotency_key, fingerprint, state)
    VALUES (begin_effect.consumer, begin_effect.idempotency_key, begin_effect.fingerprint, 'begun')
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        outcome := 'first';
        RETURN;
    END IF;
    SELECT m.* INTO found_row FROM inbox.message m
    WHERE m.consumer = begin_effect.consumer AND m.idempotency_key = begin_effect.idempotency_key;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'inbox.begin_effect: % / % disappeared while it was begun', begin_effect.consumer, begin_effect.idempotency_key
            USING ERRCODE = 'serialization_failure', HINT = 'Roll back and try again.';
    END IF;
    outcome := CASE
        WHEN found_row.fingerprint <> begin_effect.fingerprint THEN 'conflict'
        WHEN found_row.state = 'begun' THEN 'in_doubt'
        ELSE 'duplicate'
    END;
    IF outcome = 'duplicate' THEN
        result := found_row.result;
        result_type := found_row.result_type;
    END IF;
END
$$;
COMMENT ON FUNCTION inbox.begin_effect(text, text, bytea) IS
    'Begins an external effect; COMMIT before calling the provider, with the key as the provider''s idempotency key.';

CREATE FUNCTION inbox.record_effect(consumer text, idempotency_key text, result bytea, result_type text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
BEGIN
    UPDATE inbox.message m
    SET state = 'applied', result = record_effect.result, result_type = record_effect.result_type,
        recorded_at = clock_timestamp()
    WHERE m.consumer = record_effect.consumer AND m.idempotency_key = record_effect.idempotency_key
      AND m.state = 'begun';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'inbox.record_effect: % / % is not begun, or was recorded before', record_effect.consumer, record_effect.idempotency_key
            USING ERRCODE = 'no_data_found';
    END IF;
END
$$;
COMMENT ON FUNCTION inbox.record_effect(text, text, bytea, text) IS
    'Records the outcome of an external effect that was begun; also how a person settles one that is in doubt.';

CREATE FUNCTION inbox.record_effect(consumer text, idempotency_key text, result text, result_type text DEFAULT NULL)
    RETURNS void
    LANGUAGE sql
    RETURN inbox.record_effect(consumer, idempotency_key, inbox.bytes(result), result_type);
COMMENT ON FUNCTION inbox.record_effect(text, text, text, text) IS 'The same with a result that is text; its UTF-8 bytes are stored.';

CREATE FUNCTION inbox.abandon_effect(consumer text, idempotency_key text)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM inbox.message m
    WHERE m.consumer = abandon_effect.consumer AND m.idempotency_key = abandon_effect.idempotency_key
      AND m.state = 'begun';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'inbox.abandon_effect: % / % is not begun, or was recorded before', abandon_effect.consumer, abandon_effect.idempotency_key
            USING ERRCODE = 'no_data_found';
    END IF;
END
$$;
COMMENT ON FUNCTION inbox.abandon_effect(text, text) IS
    'Forgets an external effect of which it is known that it did not happen: it may be begun again.';

-- In a transaction of its own, after the handler's was rolled back.
CREATE FUNCTION inbox.fail(consumer text, idempotency_key text, error text) RETURNS integer
    LANGUAGE sql
    AS $$
    INSERT INTO inbox.attempt AS a (consumer, idempotency_key, last_error)
    VALUES (fail.consumer, fail.idempotency_key, pg_catalog.left(fail.error, 1000))
    ON CONFLICT (consumer, idempotency_key) DO UPDATE
        SET attempts = a.attempts OPERATOR(pg_catalog.+) 1, last_error = excluded.last_error, last_at = pg_catalog.clock_timestamp()
    RETURNING attempts
$$;
COMMENT ON FUNCTION inbox.fail(text, text, text) IS
    'Counts a failed attempt and returns how many there were; call it after the handler''s transaction was rolled back.';

CREATE FUNCTION inbox.forgive(consumer text, idempotency_key text) RETURNS void
    LANGUAGE sql
    AS $$
    DELETE FROM inbox.attempt a
    WHERE a.consumer OPERATOR(pg_catalog.=) forgive.consumer AND a.idempotency_key OPERATOR(pg_catalog.=) forgive.idempotency_key
$$;
COMMENT ON FUNCTION inbox.forgive(text, text) IS
    'Forgets the failed attempts of an operation, in the transaction that applies it in the end.';

-- Behind a policy that hides rows, an error instead of an answer that leaves them out.
CREATE FUNCTION inbox.prune(consumer text, older_than interval, max_rows integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    AS $$
#variable_conflict use_column
DECLARE
    deleted integer;
    -- A constant to the index: a volatile function in its place would be compared with every row of the consumer.
    horizon CONSTANT timestamptz := clock_timestamp() - prune.older_than;
BEGIN
    IF older_than < interval '0' OR max_rows < 1 THEN
        RAISE EXCEPTION 'inbox.prune: older_than must not be negative, max_rows must be positive';
    END IF;
    -- What is in doubt is never forgotten, and what was settled late is as young as its record: its message may only
    -- now be delivered again. Nothing is recorded before it is claimed, so claimed_at bounds the scan.
    WITH old AS (
        SELECT m.consumer, m.idempotency_key FROM inbox.message m
        WHERE m.consumer = prune.consumer AND m.claimed_at < horizon
          AND coalesce(m.recorded_at, m.claimed_at) < horizon
          AND m.state <> 'begun'
        ORDER BY m.claimed_at
        LIMIT prune.max_rows
        FOR UPDATE SKIP LOCKED
    )
    DELETE FROM inbox.message m USING old o
    WHERE m.consumer = o.consumer AND m.idempotency_key = o.idempotency_key;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    DELETE FROM inbox.attempt a
    WHERE a.ctid = ANY (ARRAY(
        SELECT b.ctid FROM inbox.attempt b
        WHERE b.consumer = prune.consumer AND b.last_at < horizon
        LIMIT prune.max_rows));
    RETURN deleted;
END
$$;
COMMENT ON FUNCTION inbox.prune(text, interval, integer) IS
    'Forgets up to max_rows operations older than an age that must be longer than any redelivery takes; returns how many. Call it until it returns 0.';

-- A function, since a view cannot refuse to be filtered by a policy: "nothing is in doubt" would be its answer.
CREATE FUNCTION inbox.begun() RETURNS TABLE (consumer text, idempotency_key text, claimed_at timestamptz)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    AS $$
    SELECT m.consumer, m.idempotency_key, m.claimed_at FROM inbox.message m WHERE m.state = 'begun'
$$;
COMMENT ON FUNCTION inbox.begun() IS 'What inbox.in_doubt shows.';

CREATE VIEW inbox.in_doubt AS
    SELECT consumer, idempotency_key, claimed_at AS begun_at, clock_timestamp() - claimed_at AS age
    FROM inbox.begun();
COMMENT ON VIEW inbox.in_doubt IS 'External effects that were begun and never recorded: ask the provider, then record_effect or abandon_effect.';

CREATE FUNCTION inbox.measure(
    OUT in_doubt bigint, OUT oldest_in_doubt_age_seconds double precision, OUT failing bigint
)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    AS $$
    SELECT (SELECT count(*) FROM (SELECT 1 FROM inbox.message WHERE state = 'begun' LIMIT 10001) b),
           coalesce(extract(epoch FROM clock_timestamp()
                    - (SELECT min(claimed_at) FROM inbox.message WHERE state = 'begun')), 0)::double precision,
           (SELECT count(*) FROM (SELECT 1 FROM inbox.attempt LIMIT 10001) a)
$$;
COMMENT ON FUNCTION inbox.measure() IS 'What inbox.status shows.';
REVOKE EXECUTE ON FUNCTION inbox.measure() FROM PUBLIC;

CREATE VIEW inbox.status AS SELECT * FROM inbox.measure();
COMMENT ON VIEW inbox.status IS 'State of the inbox in one row, for monitoring. Counts stop at 10,001.';
COMMENT ON COLUMN inbox.status.in_doubt IS 'External effects begun and not recorded.';
COMMENT ON COLUMN inbox.status.oldest_in_doubt_age_seconds IS 'Age of the oldest of them; 0 with none.';
COMMENT ON COLUMN inbox.status.failing IS 'Operations that failed at least once and were not applied since.';

INSERT INTO inbox.migration (version, name) VALUES (1, 'inbox');

SELECT pg_catalog.set_config('search_path', pg_catalog.current_setting('outboxd.search_path'),
                             pg_catalog.current_setting('outboxd.transaction') OPERATOR(pg_catalog.=) 'yes');
