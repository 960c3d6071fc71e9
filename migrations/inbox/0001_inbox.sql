-- outboxd, inbox schema version 1: applies each business operation once, even if the broker redelivers its message.
--
-- Plain SQL for any migration tool. It runs inside one transaction. It needs CREATE on the database, or an empty schema
-- of that name that it owns, and nothing else. It belongs in the *consumer's* database, beside the tables that the
-- consumer changes. Privileges: deploy/postgres/inbox_roles.sql.

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
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'inbox') THEN
        CREATE SCHEMA inbox;
    END IF;
END
$$;
COMMENT ON SCHEMA inbox IS 'Idempotent consumer: the applied operations, recorded in the transaction that applied them.';

CREATE TABLE inbox.migration (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE inbox.migration IS 'Migrations that ran here.';
COMMENT ON COLUMN inbox.migration.version IS 'Number at the start of the migration file''s name.';
COMMENT ON COLUMN inbox.migration.name IS 'Name of the migration file without its number.';
COMMENT ON COLUMN inbox.migration.checksum IS 'SHA-256 of the file, hexadecimal; NULL if a tool other than outboxd ran it.';
COMMENT ON COLUMN inbox.migration.applied_at IS 'Time of the migration.';

-- Domains instead of CHECK constraints of the table: PostgreSQL parses a table's constraints at every INSERT, which
-- took as long as the INSERT itself (20 us with constraints, 11 us with domains). A session caches the constraints of a
-- domain.
--
-- Names are compared byte by byte. If uniqueness depended on the system's collation, a system upgrade that changes the
-- collation would break it until the index is rebuilt.
CREATE DOMAIN inbox.name AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 255);
COMMENT ON DOMAIN inbox.name IS 'A consumer or an idempotency key: 1 to 255 bytes.';
CREATE DOMAIN inbox.digest AS bytea CHECK (octet_length(VALUE) = 32);
COMMENT ON DOMAIN inbox.digest IS 'SHA-256.';
CREATE DOMAIN inbox.state AS text CHECK (VALUE IN ('applied', 'stale', 'begun'));
COMMENT ON DOMAIN inbox.state IS 'See inbox.message.state.';
CREATE DOMAIN inbox.result AS bytea CHECK (octet_length(VALUE) <= 1048576);
COMMENT ON DOMAIN inbox.result IS 'Result of an operation: at most 1 MiB.';

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
    'One row for each business operation that a consumer applied. Its primary key prevents a second application.';
COMMENT ON COLUMN inbox.message.consumer IS 'Consumer that applied the operation. One message at two consumers is two operations.';
COMMENT ON COLUMN inbox.message.idempotency_key IS
    'Name of the operation: the message id, or a business key (pay_123) that stays the same when a fact is published twice.';
COMMENT ON COLUMN inbox.message.fingerprint IS
    'SHA-256 over type, content type and body. The same key with another fingerprint is a conflict, not a duplicate.';
COMMENT ON COLUMN inbox.message.state IS
    'applied: done. stale: skipped, because a later position of its entity was applied before. begun: an external effect was begun; until it is recorded, its outcome is in doubt.';
COMMENT ON COLUMN inbox.message.result IS 'Result of the operation, returned to duplicates; at most 1 MiB.';
COMMENT ON COLUMN inbox.message.result_type IS 'Media type of the result.';
COMMENT ON COLUMN inbox.message.claimed_at IS 'Time of the claim, by the database''s clock.';
COMMENT ON COLUMN inbox.message.recorded_at IS 'Time at which the result was recorded. Pruning uses this time, or claimed_at if it is NULL.';
CREATE INDEX message_claimed ON inbox.message (consumer, claimed_at);
COMMENT ON INDEX inbox.message_claimed IS 'Operations that may be old enough to be pruned.';
CREATE INDEX message_begun ON inbox.message (consumer, claimed_at) WHERE state = 'begun';
COMMENT ON INDEX inbox.message_begun IS 'External effects whose outcome is in doubt.';

CREATE TABLE inbox.entity (
    consumer   text        COLLATE "C" NOT NULL,
    entity     text        COLLATE "C" NOT NULL,
    position   bigint      NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, entity)
) WITH (fillfactor = 70);
COMMENT ON TABLE inbox.entity IS 'Last applied position of each entity, for consumers that use the stale guard.';
COMMENT ON COLUMN inbox.entity.consumer IS 'Consumer that uses the guard.';
COMMENT ON COLUMN inbox.entity.entity IS 'The entity, for example the outbox-key header.';
COMMENT ON COLUMN inbox.entity.position IS 'Highest position applied, for example the outbox-position header.';
COMMENT ON COLUMN inbox.entity.applied_at IS 'Time of that application.';

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
    'Failed attempts, counted in separate transactions: a rollback of the handler''s transaction would also remove its count.';
COMMENT ON COLUMN inbox.attempt.consumer IS 'Consumer that made the attempts.';
COMMENT ON COLUMN inbox.attempt.idempotency_key IS 'Key of the operation.';
COMMENT ON COLUMN inbox.attempt.attempts IS 'Number of failed attempts.';
COMMENT ON COLUMN inbox.attempt.last_error IS 'Error of the last attempt.';
COMMENT ON COLUMN inbox.attempt.first_at IS 'Time of the first failure.';
COMMENT ON COLUMN inbox.attempt.last_at IS 'Time of the last failure.';

-- Every language computes the same fingerprint, so a service may be rewritten in another language. Each part carries
-- its length, which distinguishes ('ab', 'c') from ('a', 'bc').
CREATE FUNCTION inbox.fingerprint(type text, content_type text, body bytea) RETURNS bytea
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN sha256(
        int8send(length(convert_to(coalesce(type, ''), 'UTF8'))) || convert_to(coalesce(type, ''), 'UTF8') ||
        int8send(length(convert_to(coalesce(content_type, ''), 'UTF8'))) || convert_to(coalesce(content_type, ''), 'UTF8') ||
        int8send(length(coalesce(body, ''))) || coalesce(body, ''));
COMMENT ON FUNCTION inbox.fingerprint(text, text, bytea) IS
    'SHA-256 over type, content type and raw body, each after its length in bytes (8, big-endian); a missing part counts as empty.';

-- PostgreSQL reads a literal, or a parameter without a type, as an escape string if it expects bytea: backslashes would
-- be lost. With this function beside the other, PostgreSQL takes the value as text. Only text that looks like
-- hexadecimal bytes is refused, because it is probably meant as bytes.
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
COMMENT ON FUNCTION inbox.bytes(text) IS 'UTF-8 bytes of a text. Refuses a text that may be hexadecimal bytes.';

CREATE FUNCTION inbox.fingerprint(type text, content_type text, body text) RETURNS bytea
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN inbox.fingerprint(type, content_type, inbox.bytes(body));
COMMENT ON FUNCTION inbox.fingerprint(text, text, text) IS
    'The same fingerprint for a text body, from its UTF-8 bytes. Pass a body that is not UTF-8 as bytea.';

-- Claims an operation in the caller's transaction. Of any number of concurrent callers exactly one gets `first`. The
-- others wait until that transaction ends, and then get `duplicate`, or `first` if it was rolled back.
--
-- The INSERT and the SELECT are two statements. In one statement, a caller that waited would see neither its own row
-- nor the row that it waited for.
--
-- Names carry their schemas, because a search_path set on the function would cost 4 us for each call.
--
-- FOUND and a number of rows do not prove a write: a trigger that returns OLD keeps the old row, and PostgreSQL counts
-- it as written. So each write here and below returns whether the stored row is the one that was meant. If it is not,
-- an exception rolls the caller's transaction back. A rule in place of the write cannot hide it, because PostgreSQL
-- refuses RETURNING and ON CONFLICT on a table with such a rule.
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
    stored    boolean;
    marked    boolean;
BEGIN
    INSERT INTO inbox.message AS m (consumer, idempotency_key, fingerprint, state)
    VALUES (claim.consumer, claim.idempotency_key, claim.fingerprint, 'applied')
    ON CONFLICT DO NOTHING
    RETURNING m.consumer OPERATOR(pg_catalog.=) claim.consumer
          AND m.idempotency_key OPERATOR(pg_catalog.=) claim.idempotency_key
          AND m.fingerprint OPERATOR(pg_catalog.=) claim.fingerprint
          AND m.state OPERATOR(pg_catalog.=) 'applied' INTO stored;
    IF FOUND THEN
        IF NOT stored THEN
            RAISE EXCEPTION 'inbox.claim: inbox.message stores another row than % / %', claim.consumer, claim.idempotency_key
                USING ERRCODE = 'triggered_action_exception', SCHEMA = 'inbox', TABLE = 'message',
                      HINT = 'A trigger on inbox.message changes the row. Let it pass the rows of the inbox, or drop it.';
        END IF;
        outcome := 'first';
        IF claim.entity IS NOT NULL AND claim.position_ IS NOT NULL THEN
            INSERT INTO inbox.entity AS e (consumer, entity, position)
            VALUES (claim.consumer, claim.entity, claim.position_)
            ON CONFLICT (consumer, entity) DO UPDATE
                SET position = excluded.position, applied_at = pg_catalog.clock_timestamp()
                WHERE e.position OPERATOR(pg_catalog.<) excluded.position
            RETURNING e.consumer OPERATOR(pg_catalog.=) claim.consumer
                  AND e.entity OPERATOR(pg_catalog.=) claim.entity
                  AND e.position OPERATOR(pg_catalog.=) claim.position_ INTO stored;
            IF NOT FOUND THEN
                -- Nothing was written, because the stored position is as high, or because a trigger swallowed the row.
                UPDATE inbox.message m SET state = 'stale', recorded_at = pg_catalog.clock_timestamp()
                WHERE m.consumer OPERATOR(pg_catalog.=) claim.consumer
                  AND m.idempotency_key OPERATOR(pg_catalog.=) claim.idempotency_key
                RETURNING m.state OPERATOR(pg_catalog.=) 'stale', EXISTS (
                    SELECT FROM inbox.entity e
                    WHERE e.consumer OPERATOR(pg_catalog.=) claim.consumer
                      AND e.entity OPERATOR(pg_catalog.=) claim.entity
                      AND e.position OPERATOR(pg_catalog.>=) claim.position_) INTO marked, stored;
                IF marked IS NOT TRUE THEN
                    RAISE EXCEPTION 'inbox.claim: the state of % / % was not written', claim.consumer, claim.idempotency_key
                        USING ERRCODE = 'triggered_action_exception', SCHEMA = 'inbox', TABLE = 'message',
                              HINT = 'A trigger on inbox.message keeps its rows as they are. Let it pass the rows of the inbox, or drop it.';
                END IF;
                outcome := 'stale';
            END IF;
            IF stored IS NOT TRUE THEN
                RAISE EXCEPTION 'inbox.claim: the stale guard of % / % was not written', claim.consumer, claim.entity
                    USING ERRCODE = 'triggered_action_exception', SCHEMA = 'inbox', TABLE = 'entity',
                          HINT = 'A trigger on inbox.entity keeps its rows as they are. Let it pass the rows of the inbox, or drop it.';
            END IF;
        END IF;
        RETURN;
    END IF;
    SELECT m.* INTO found_row FROM inbox.message m
    WHERE m.consumer OPERATOR(pg_catalog.=) claim.consumer
      AND m.idempotency_key OPERATOR(pg_catalog.=) claim.idempotency_key;
    IF NOT FOUND THEN
        -- Pruned between the two statements, or swallowed.
        RAISE EXCEPTION 'inbox.claim: % / % disappeared while it was claimed', claim.consumer, claim.idempotency_key
            USING ERRCODE = 'serialization_failure', SCHEMA = 'inbox', TABLE = 'message',
                  HINT = 'Roll back and try again. If it repeats, a trigger or a policy on inbox.message swallows or hides its rows.';
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
DECLARE
    stored boolean;
    locked boolean := false;
BEGIN
    LOOP
        UPDATE inbox.message m
        SET result = complete.result, result_type = complete.result_type, recorded_at = pg_catalog.clock_timestamp()
        WHERE m.consumer OPERATOR(pg_catalog.=) complete.consumer AND m.idempotency_key OPERATOR(pg_catalog.=) complete.idempotency_key
          AND m.state OPERATOR(pg_catalog.=) 'applied'
        RETURNING m.recorded_at IS NOT NULL AND m.state OPERATOR(pg_catalog.=) 'applied'
              AND coalesce(m.result OPERATOR(pg_catalog.=) complete.result, m.result IS NULL AND complete.result IS NULL)
              AND coalesce(m.result_type OPERATOR(pg_catalog.=) complete.result_type,
                           m.result_type IS NULL AND complete.result_type IS NULL) INTO stored;
        EXIT WHEN FOUND OR locked;
        -- Only an error costs this second look. Its lock tells a row that a trigger kept from a row that another session
        -- claimed after the UPDATE had looked: only the second one can be written now.
        SELECT true INTO locked FROM inbox.message m
        WHERE m.consumer OPERATOR(pg_catalog.=) complete.consumer AND m.idempotency_key OPERATOR(pg_catalog.=) complete.idempotency_key
          AND m.state OPERATOR(pg_catalog.=) 'applied'
        FOR UPDATE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'inbox.complete: % / % was not claimed', complete.consumer, complete.idempotency_key
                USING ERRCODE = 'no_data_found', HINT = 'Call inbox.claim before, in the same transaction.';
        END IF;
    END LOOP;
    IF stored IS NOT TRUE THEN
        RAISE EXCEPTION 'inbox.complete: the result of % / % was not written', complete.consumer, complete.idempotency_key
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'inbox', TABLE = 'message',
                  HINT = 'A trigger on inbox.message keeps its rows as they are. Let it pass the rows of the inbox, or drop it.';
    END IF;
END
$$;
COMMENT ON FUNCTION inbox.complete(text, text, bytea, text) IS
    'Stores the result of a claimed operation, in the same transaction. Duplicates get this result.';

CREATE FUNCTION inbox.complete(consumer text, idempotency_key text, result text, result_type text DEFAULT NULL)
    RETURNS void
    LANGUAGE sql
    RETURN inbox.complete(consumer, idempotency_key, inbox.bytes(result), result_type);
COMMENT ON FUNCTION inbox.complete(text, text, text, text) IS 'The same for a text result; its UTF-8 bytes are stored.';

-- External effects (a payment provider, an e-mail): the database cannot roll them back. So the caller commits the
-- beginning before the effect, and the outcome after it. A caller that finds a beginning without an outcome gets
-- `in_doubt`, so no effect is repeated silently.
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
    stored    boolean;
BEGIN
    INSERT INTO inbox.message AS m (consumer, idempotency_key, fingerprint, state)
    VALUES (begin_effect.consumer, begin_effect.idempotency_key, begin_effect.fingerprint, 'begun')
    ON CONFLICT DO NOTHING
    RETURNING m.consumer = begin_effect.consumer AND m.idempotency_key = begin_effect.idempotency_key
          AND m.fingerprint = begin_effect.fingerprint AND m.state = 'begun' INTO stored;
    IF FOUND THEN
        IF NOT stored THEN
            RAISE EXCEPTION 'inbox.begin_effect: inbox.message stores another row than % / %', begin_effect.consumer, begin_effect.idempotency_key
                USING ERRCODE = 'triggered_action_exception', SCHEMA = 'inbox', TABLE = 'message',
                      HINT = 'A trigger on inbox.message changes the row. Let it pass the rows of the inbox, or drop it.';
        END IF;
        outcome := 'first';
        RETURN;
    END IF;
    SELECT m.* INTO found_row FROM inbox.message m
    WHERE m.consumer = begin_effect.consumer AND m.idempotency_key = begin_effect.idempotency_key;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'inbox.begin_effect: % / % disappeared while it was begun', begin_effect.consumer, begin_effect.idempotency_key
            USING ERRCODE = 'serialization_failure', SCHEMA = 'inbox', TABLE = 'message',
                  HINT = 'Roll back and try again. If it repeats, a trigger or a policy on inbox.message swallows or hides its rows.';
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
    'Begins an external effect. COMMIT before the call of the provider, and pass the key as the provider''s idempotency key.';

-- The lock comes first, here and in abandon_effect: it tells a row that a trigger kept from an effect that another session
-- abandoned and began again meanwhile.
CREATE FUNCTION inbox.record_effect(consumer text, idempotency_key text, result bytea, result_type text DEFAULT NULL)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    stored boolean;
BEGIN
    PERFORM FROM inbox.message m
    WHERE m.consumer = record_effect.consumer AND m.idempotency_key = record_effect.idempotency_key
      AND m.state = 'begun'
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'inbox.record_effect: % / % is not begun, or was recorded before', record_effect.consumer, record_effect.idempotency_key
            USING ERRCODE = 'no_data_found';
    END IF;
    UPDATE inbox.message m
    SET state = 'applied', result = record_effect.result, result_type = record_effect.result_type,
        recorded_at = clock_timestamp()
    WHERE m.consumer = record_effect.consumer AND m.idempotency_key = record_effect.idempotency_key
      AND m.state = 'begun'
    RETURNING m.state = 'applied' AND m.recorded_at IS NOT NULL AND m.result IS NOT DISTINCT FROM record_effect.result
          AND m.result_type IS NOT DISTINCT FROM record_effect.result_type INTO stored;
    IF stored IS NOT TRUE THEN
        RAISE EXCEPTION 'inbox.record_effect: the outcome of % / % was not written', record_effect.consumer, record_effect.idempotency_key
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'inbox', TABLE = 'message',
                  HINT = 'A trigger on inbox.message keeps its rows as they are. Let it pass the rows of the inbox, or drop it.';
    END IF;
END
$$;
COMMENT ON FUNCTION inbox.record_effect(text, text, bytea, text) IS
    'Records the outcome of a begun external effect. An operator also uses it to settle an effect that is in doubt.';

CREATE FUNCTION inbox.record_effect(consumer text, idempotency_key text, result text, result_type text DEFAULT NULL)
    RETURNS void
    LANGUAGE sql
    RETURN inbox.record_effect(consumer, idempotency_key, inbox.bytes(result), result_type);
COMMENT ON FUNCTION inbox.record_effect(text, text, text, text) IS 'The same for a text result; its UTF-8 bytes are stored.';

CREATE FUNCTION inbox.abandon_effect(consumer text, idempotency_key text)
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    deleted boolean;
BEGIN
    PERFORM FROM inbox.message m
    WHERE m.consumer = abandon_effect.consumer AND m.idempotency_key = abandon_effect.idempotency_key
      AND m.state = 'begun'
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'inbox.abandon_effect: % / % is not begun, or was recorded before', abandon_effect.consumer, abandon_effect.idempotency_key
            USING ERRCODE = 'no_data_found';
    END IF;
    DELETE FROM inbox.message m
    WHERE m.consumer = abandon_effect.consumer AND m.idempotency_key = abandon_effect.idempotency_key
      AND m.state = 'begun'
    RETURNING true INTO deleted;
    IF deleted IS NOT TRUE THEN
        RAISE EXCEPTION 'inbox.abandon_effect: % / % was not deleted', abandon_effect.consumer, abandon_effect.idempotency_key
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'inbox', TABLE = 'message',
                  HINT = 'A trigger on inbox.message keeps its rows as they are. Let it pass the rows of the inbox, or drop it.';
    END IF;
END
$$;
COMMENT ON FUNCTION inbox.abandon_effect(text, text) IS
    'Deletes the record of an external effect that certainly did not happen, so that it may begin again.';

-- Call it in a separate transaction, after the rollback of the handler's transaction.
--
-- The lock comes first: the count is written if it is higher than the count that another session can no longer change or
-- delete. An INSERT alone would compare with a row that another session had deleted meanwhile.
CREATE FUNCTION inbox.fail(consumer text, idempotency_key text, error text) RETURNS integer
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    before  integer;
    counted integer;
    stored  boolean;
BEGIN
    SELECT a.attempts INTO before FROM inbox.attempt a
    WHERE a.consumer OPERATOR(pg_catalog.=) fail.consumer AND a.idempotency_key OPERATOR(pg_catalog.=) fail.idempotency_key
    FOR UPDATE;
    INSERT INTO inbox.attempt AS a (consumer, idempotency_key, last_error)
    VALUES (fail.consumer, fail.idempotency_key, pg_catalog.left(fail.error, 1000))
    ON CONFLICT (consumer, idempotency_key) DO UPDATE
        SET attempts = a.attempts OPERATOR(pg_catalog.+) 1, last_error = excluded.last_error, last_at = pg_catalog.clock_timestamp()
    RETURNING a.attempts,
          a.consumer OPERATOR(pg_catalog.=) fail.consumer AND a.idempotency_key OPERATOR(pg_catalog.=) fail.idempotency_key
          AND a.attempts OPERATOR(pg_catalog.>) coalesce(before, 0)
    INTO counted, stored;
    IF stored IS NOT TRUE THEN
        RAISE EXCEPTION 'inbox.fail: the failed attempt of % / % was not counted', fail.consumer, fail.idempotency_key
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'inbox', TABLE = 'attempt',
                  HINT = 'A trigger on inbox.attempt keeps its rows as they are. Let it pass the rows of the inbox, or drop it.';
    END IF;
    RETURN counted;
END
$$;
COMMENT ON FUNCTION inbox.fail(text, text, text) IS
    'Counts a failed attempt and returns the number of failures. Call it after the rollback of the handler''s transaction.';

-- The lock tells a row that a trigger kept from a row that another session deletes.
CREATE FUNCTION inbox.forgive(consumer text, idempotency_key text) RETURNS void
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    kept boolean;
BEGIN
    WITH here AS (
        SELECT b.consumer, b.idempotency_key FROM inbox.attempt b
        WHERE b.consumer OPERATOR(pg_catalog.=) forgive.consumer
          AND b.idempotency_key OPERATOR(pg_catalog.=) forgive.idempotency_key
        FOR UPDATE
    ), gone AS (
        DELETE FROM inbox.attempt a USING here h
        WHERE a.consumer OPERATOR(pg_catalog.=) h.consumer AND a.idempotency_key OPERATOR(pg_catalog.=) h.idempotency_key
        RETURNING 1
    )
    SELECT EXISTS (SELECT FROM here) AND NOT EXISTS (SELECT FROM gone) INTO kept;
    IF kept THEN
        RAISE EXCEPTION 'inbox.forgive: the failed attempts of % / % were not deleted', forgive.consumer, forgive.idempotency_key
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'inbox', TABLE = 'attempt',
                  HINT = 'A trigger on inbox.attempt keeps its rows as they are. Let it pass the rows of the inbox, or drop it.';
    END IF;
END
$$;
COMMENT ON FUNCTION inbox.forgive(text, text) IS
    'Deletes the failed attempts of an operation, in the transaction that finally applies it.';

-- Under a policy that hides rows, this raises an error instead of skipping the hidden rows.
CREATE FUNCTION inbox.prune(consumer text, older_than interval, max_rows integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    AS $$
#variable_conflict use_column
DECLARE
    chosen         integer;
    deleted        integer;
    failed_chosen  integer;
    failed_deleted integer;
    -- A constant can bound the index scan. A volatile function in its place would be evaluated for every row of the
    -- consumer.
    horizon CONSTANT timestamptz := clock_timestamp() - prune.older_than;
BEGIN
    IF older_than < interval '0' OR max_rows < 1 THEN
        RAISE EXCEPTION 'inbox.prune: older_than must not be negative, max_rows must be positive';
    END IF;
    -- An operation in doubt is never deleted. The age of a late record counts from recorded_at, because its message may
    -- be redelivered only now. recorded_at is never before claimed_at, so claimed_at bounds the scan.
    WITH old AS (
        SELECT m.consumer, m.idempotency_key FROM inbox.message m
        WHERE m.consumer = prune.consumer AND m.claimed_at < horizon
          AND coalesce(m.recorded_at, m.claimed_at) < horizon
          AND m.state <> 'begun'
        ORDER BY m.claimed_at
        LIMIT prune.max_rows
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM inbox.message m USING old o
        WHERE m.consumer = o.consumer AND m.idempotency_key = o.idempotency_key
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM old), (SELECT count(*) FROM gone) INTO chosen, deleted;
    WITH old AS (
        SELECT b.consumer, b.idempotency_key FROM inbox.attempt b
        WHERE b.consumer = prune.consumer AND b.last_at < horizon
        LIMIT prune.max_rows
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM inbox.attempt a USING old o
        WHERE a.consumer = o.consumer AND a.idempotency_key = o.idempotency_key
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM old), (SELECT count(*) FROM gone) INTO failed_chosen, failed_deleted;
    -- Locked and chosen, so no other session deletes them.
    IF deleted < chosen OR failed_deleted < failed_chosen THEN
        RAISE EXCEPTION 'inbox.prune: % of % old rows of % were not deleted',
            chosen - deleted + failed_chosen - failed_deleted, chosen + failed_chosen, prune.consumer
            USING ERRCODE = 'triggered_action_exception', SCHEMA = 'inbox',
                  TABLE = CASE WHEN deleted < chosen THEN 'message' ELSE 'attempt' END,
                  HINT = 'A trigger on inbox.message or inbox.attempt keeps its rows as they are. Let it pass the rows of the inbox, or drop it.';
    END IF;
    RETURN deleted;
END
$$;
COMMENT ON FUNCTION inbox.prune(text, interval, integer) IS
    'Deletes up to max_rows operations that are older than older_than, and returns their number. older_than must exceed the longest possible redelivery. Call it until it returns 0.';

-- A function, because a view cannot refuse a policy that filters its rows: it would show that nothing is in doubt.
CREATE FUNCTION inbox.begun() RETURNS TABLE (consumer text, idempotency_key text, claimed_at timestamptz)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    AS $$
    SELECT m.consumer, m.idempotency_key, m.claimed_at FROM inbox.message m WHERE m.state = 'begun'
$$;
COMMENT ON FUNCTION inbox.begun() IS 'The rows of inbox.in_doubt.';

CREATE VIEW inbox.in_doubt AS
    SELECT consumer, idempotency_key, claimed_at AS begun_at, clock_timestamp() - claimed_at AS age
    FROM inbox.begun();
COMMENT ON VIEW inbox.in_doubt IS 'External effects that were begun and not recorded. Ask the provider, then call record_effect or abandon_effect.';

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
COMMENT ON FUNCTION inbox.measure() IS 'The values of inbox.status.';
REVOKE EXECUTE ON FUNCTION inbox.measure() FROM PUBLIC;

CREATE VIEW inbox.status AS SELECT * FROM inbox.measure();
COMMENT ON VIEW inbox.status IS 'State of the inbox in one row, for monitoring. Counts stop at 10,001.';
COMMENT ON COLUMN inbox.status.in_doubt IS 'External effects that were begun and not recorded.';
COMMENT ON COLUMN inbox.status.oldest_in_doubt_age_seconds IS 'Age of the oldest of these effects; 0 if there is none.';
COMMENT ON COLUMN inbox.status.failing IS 'Operations that failed at least once and have not been applied since.';

INSERT INTO inbox.migration (version, name) VALUES (1, 'inbox');

SELECT pg_catalog.set_config('search_path', pg_catalog.current_setting('outboxd.search_path'),
                             pg_catalog.current_setting('outboxd.transaction') OPERATOR(pg_catalog.=) 'yes');
