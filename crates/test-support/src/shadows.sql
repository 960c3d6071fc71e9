-- Plants, in one schema, a stand-in for every function, operator, type and table of PostgreSQL that our SQL names.
-- Parameters: {schema}; {words}: every word of our SQL before a parenthesis; {symbols}: its operators; {names}: all its words.
-- A stand-in takes exactly the types that the original would take by a cast, so it wins wherever its schema is in the path.
CREATE SCHEMA IF NOT EXISTS trap;
GRANT USAGE ON SCHEMA trap TO PUBLIC;
CREATE SEQUENCE IF NOT EXISTS trap.sprung;
CREATE OR REPLACE FUNCTION trap.spring(name pg_catalog.text) RETURNS pg_catalog.bool
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM nextval('trap.sprung');
    RAISE EXCEPTION 'a stand-in for % ran as %', name, session_user;
END
$$;
CREATE SCHEMA IF NOT EXISTS {schema};
GRANT USAGE ON SCHEMA {schema} TO PUBLIC;
SET search_path = pg_catalog, pg_temp;
DO $plant$
DECLARE
    one record;
    sql text;
    planted bigint := 0;
BEGIN
    -- Types of our rows and parameters, and of expressions over them.
    CREATE TEMP TABLE kind ON COMMIT DROP AS
        SELECT DISTINCT t.oid, t.typbasetype AS base, format_type(t.oid, NULL) AS called
        FROM pg_type t
        WHERE t.oid = ANY ('{int2,int4,int8,float8,numeric,bool,text,name,timestamptz,interval,uuid,json,bytea,xid8,oid,regclass,pg_snapshot,tid,"\"char\"",pg_node_tree,oidvector,int2[],int8[],text[],uuid[],aclitem[]}'::regtype[])
           OR (t.typtype = 'd' AND t.typnamespace::regnamespace::text IN ('outbox', 'inbox'));
    -- Implicit casts from these types to parameter types.
    CREATE TEMP TABLE goes ON COMMIT DROP AS
        SELECT k.oid AS given, p.oid AS taken
        FROM kind k CROSS JOIN pg_type p
        WHERE k.oid = p.oid OR k.base = p.oid
           OR EXISTS (SELECT FROM pg_cast c WHERE c.castsource IN (k.oid, k.base) AND c.casttarget = p.oid AND c.castcontext = 'i')
           OR p.typname IN ('any', 'anyelement', 'anynonarray', 'anycompatible')
           OR (p.typname IN ('anyarray', 'anycompatiblearray') AND k.called LIKE '%[]');

    FOR one IN
        WITH original AS (
            SELECT p.oid, p.proname, p.proretset, p.prorettype, p.provariadic, p.proargtypes::oid[] AS takes
            FROM pg_proc p
            WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY ('{words}'::name[])
              AND p.prokind = 'f' AND p.pronargs BETWEEN 0 AND 3
        ), longer AS (
            SELECT * FROM original
            UNION ALL
            SELECT oid, proname, proretset, prorettype, 0, takes || provariadic FROM original WHERE provariadic <> 0
        )
        SELECT DISTINCT o.proname, concat_ws(', ', format_type(a.given, NULL), format_type(b.given, NULL), format_type(c.given, NULL)) AS takes,
               CASE WHEN r.typtype = 'p' THEN coalesce(format_type(a.given, NULL), 'bool') ELSE format_type(r.oid, NULL) END AS gives,
               o.proretset
        FROM longer o
        JOIN pg_type r ON r.oid = o.prorettype
        LEFT JOIN goes a ON a.taken = o.takes[1]
        LEFT JOIN goes b ON b.taken = o.takes[2]
        LEFT JOIN goes c ON c.taken = o.takes[3]
        WHERE (o.takes[1] IS NULL) = (a.given IS NULL) AND (o.takes[2] IS NULL) = (b.given IS NULL)
          AND (o.takes[3] IS NULL) = (c.given IS NULL)
    LOOP
        sql := format('CREATE FUNCTION {schema}.%I(%s) RETURNS %s%s LANGUAGE plpgsql AS %L', one.proname, one.takes,
                      CASE WHEN one.proretset THEN 'SETOF ' END, one.gives,
                      format('BEGIN PERFORM trap.spring(%L); END', one.proname));
        BEGIN
            EXECUTE sql;
            planted := planted + 1;
        EXCEPTION WHEN duplicate_function OR invalid_function_definition OR undefined_object THEN
            NULL;
        END;
    END LOOP;

    FOR one IN
        SELECT DISTINCT ON (o.oprname, a.given, b.given) o.oprname, format_type(a.given, NULL) AS l, format_type(b.given, NULL) AS r,
               CASE WHEN t.typtype = 'p' THEN format_type(a.given, NULL) ELSE format_type(t.oid, NULL) END AS gives
        FROM pg_operator o
        JOIN pg_type t ON t.oid = o.oprresult
        JOIN goes a ON a.taken = o.oprleft
        JOIN goes b ON b.taken = o.oprright
        WHERE o.oprname = ANY ('{symbols}'::name[]) AND o.oprnamespace = 'pg_catalog'::regnamespace
    LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION {schema}.%I(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', 'op ' || one.oprname, one.l, one.r,
                           one.gives, format('BEGIN PERFORM trap.spring(%L); END', one.l || ' ' || one.oprname || ' ' || one.r));
            EXECUTE format('CREATE OPERATOR {schema}.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = {schema}.%I)', one.oprname, one.l, one.r,
                           'op ' || one.oprname);
            planted := planted + 1;
        EXCEPTION WHEN duplicate_function THEN
            NULL;
        END;
    END LOOP;

    FOR one IN
        SELECT typname FROM pg_type
        WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype = 'b' AND typname = ANY ('{names}'::name[])
    LOOP
        BEGIN
            EXECUTE format('CREATE DOMAIN {schema}.%I AS pg_catalog.%I CHECK (trap.spring(%L))', one.typname, one.typname, one.typname);
            planted := planted + 1;
        EXCEPTION WHEN duplicate_object THEN
            NULL;
        END;
    END LOOP;

    FOR one IN
        SELECT relname FROM pg_class
        WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v') AND relname = ANY ('{names}'::name[])
    LOOP
        BEGIN
            EXECUTE format('CREATE OR REPLACE VIEW {schema}.%I AS SELECT * FROM pg_catalog.%I WHERE trap.spring(%L)', one.relname,
                           one.relname, one.relname);
            EXECUTE format('GRANT SELECT ON {schema}.%I TO PUBLIC', one.relname);
            planted := planted + 1;
        -- Some tables have columns that no view can have.
        EXCEPTION WHEN invalid_table_definition THEN
            NULL;
        END;
    END LOOP;
    RAISE NOTICE 'planted %', planted;
END
$plant$;
RESET search_path;
