-- Gatepost's schema. `python -m server migrate` runs it as the owner, in ONE transaction; it can be run again at any time.
-- Postgres 15 to 18. The owner owns the database and has CREATEROLE, or is a superuser.
--
-- generation 2, revision 4
--
-- The revision goes up with each release that changes this file; the generation goes up when servers of the previous
-- release can no longer work with it (something they use is dropped, renamed or changes its meaning). See
-- server/schema/migrate.py.
--
-- The promise of this file: a query without its WHERE still returns only rows that its caller may see, and a query without a
-- caller returns none. It protects against mistakes, not against SQL injection or hostile code in the server's process (code
-- that can run any SQL as the serving role can also set the settings below).
--
-- The roles:
--   the owner       runs this file, owns the tables, and serves no request. Row-level security is FORCED, so it sees no row either.
--   gatepost_app    the serving role. Owns nothing, is a member of nothing, has column grants and nothing else.
--   gatepost_auth   cannot log in. It owns the functions that look up a credential, before the caller is known.
--   gatepost_sync   the same for what arrives without a caller (webhooks, revocations).
--   gatepost_audit  the same for the audit log: it alone adds entries and deletes old ones.
--
-- Settings, set for one transaction only, name the caller. The policies read three:
--   gatepost.user_id        the user
--   gatepost.org_id         the active organisation
--   gatepost.admin_org_id   the same organisation, but only on a route that requires the role org:admin
-- and the audit log reads two more, which do not affect the visibility of any row:
--   gatepost.actor          who is writing: the user, or key:<id>, or a command's own name. If someone else acts as the user
--                           (impersonation), a line feed and that person's id follow
--   gatepost.request_id     the current request; unset outside of requests
-- Always NULLIF(current_setting(name, true), ''): a setting that was never set reads NULL, one that was set in an earlier
-- transaction of the same connection reads ''. Both must mean "no caller".
-- Policies for SELECT say (SELECT NULLIF(...)): Postgres then reads the setting once for each query, when the first row is
-- looked at, and not once for each row. In a one-statement read this happens after the statement has set it
-- (server/database/statements.py).
-- Where a table has two policies that an index could answer, the second one says COALESCE(..., false), which no index answers.
-- Without it, Postgres could collect the rows of both and sort them all for every page; for a user with a million rows it did
-- (tests/database/test_plans.py). So the handler's WHERE chooses the index, and the policies are checked on the rows that it
-- finds. The price: a query without its WHERE checks them on the whole table.
-- A policy for administrators is checked only on rows that the first one hides, so it says NULLIF(...) alone: preparing to
-- read the setting once would cost every query more than that.

SET LOCAL client_min_messages = warning;                   -- no notices about what already exists
SET LOCAL search_path = public, pg_temp;

DO $do$
DECLARE
    owner text := current_user;
    app   text := coalesce(NULLIF(current_setting('gatepost.serving_role', true), ''), 'gatepost_app');
    name  text;
BEGIN
    IF current_setting('server_version_num')::int < 150000 THEN
        RAISE EXCEPTION 'Gatepost needs Postgres 15 or newer, this is %', current_setting('server_version');
    END IF;
    IF app IN (owner, 'gatepost_auth', 'gatepost_sync', 'gatepost_audit') THEN
        RAISE EXCEPTION 'the serving role must be a role of its own, % is not', app;
    END IF;
    PERFORM set_config('gatepost.serving_role', app, true), set_config('gatepost.owner', owner, true);

    -- Roles belong to the whole server, not to this database: created if missing, never altered. Two databases may be
    -- migrated at the same moment, so it is not an error if the role has been created meanwhile.
    FOREACH name IN ARRAY ARRAY[app, 'gatepost_auth', 'gatepost_sync', 'gatepost_audit'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = name);
        BEGIN
            EXECUTE format('CREATE ROLE %I %s', name, CASE WHEN name = app THEN 'LOGIN' ELSE 'NOLOGIN NOINHERIT' END);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END LOOP;
    -- A role that already existed is not ours to alter, but it must not be trusted blindly either.
    SELECT rolname INTO name FROM pg_roles
     WHERE rolname IN ('gatepost_auth', 'gatepost_sync', 'gatepost_audit')
       AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication);
    IF FOUND THEN
        RAISE EXCEPTION 'role % exists and is not a plain NOLOGIN role', name;
    END IF;

    -- PUBLIC has CONNECT and TEMP by default: every role of the server could connect, and create temporary tables.
    EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), app);
    -- A role that may create objects in a schema could shadow our functions and tables with its own.
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I, gatepost_auth, gatepost_sync, gatepost_audit', app);
END $do$;


-- Gatepost's own tables, each with columns that it had when it was created.
CREATE OR REPLACE FUNCTION public.gatepost_own_tables() RETURNS TABLE (name name, columns name[])
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    VALUES ('data'::name, '{id,user_id,org_id,name,payload,created_at,updated_at}'::name[]),
           ('org_data', '{id,organization_id,created_by,name,payload,created_at,updated_at}'),
           ('invoices', '{id,organization_id,created_by,customer,amount,currency,due_on,memo,created_at,updated_at}'),
           ('api_keys', '{id,hash,name,user_id,org_id,scopes,created_by,created_at,expires_at,revoked_at}'),
           ('users', '{id,external_id,image_url,public_metadata,deleted_at,last_event_at,last_event_id}'),
           ('organizations', '{id,slug,image_url,public_metadata,deleted_at,last_event_at,last_event_id}'),
           ('memberships', '{id,organization_id,user_id,role,permissions,deleted_at,last_event_at,last_event_id}'),
           ('webhook_inbox', '{id,provider,type,event_at,payload,expires_at}'),
           ('revocations', '{kind,subject,issued_before,expires_at}'),
           ('endings', '{id,kind,subject,org_id,ended_at}'),
           ('idempotency_keys', '{hash,user_id,org_id,fingerprint,status,headers,body,expires_at}'),
           ('audit_log', '{id,org_id,user_id,actor,action,target,row_id,changed,request_id}'),
           ('gatepost_meta', '{id,checksum,migrated_at}'),
           ('gatepost_public', '{relation,reason,declared_at}'),
           ('gatepost_tickets', '{hash,caller,path,identity,expires_at}')
$$;
REVOKE ALL ON FUNCTION public.gatepost_own_tables() FROM PUBLIC;

-- A table that has one of these names and that Gatepost did not create belongs to another program, which would lose its rows
-- from sight: nothing is changed then.
DO $do$
DECLARE
    foreign_tables text := (
        SELECT string_agg(format('public.%I', o.name), ', ' ORDER BY o.name)
          FROM public.gatepost_own_tables() AS o
          JOIN pg_class AS c ON c.relname = o.name AND c.relnamespace = 'public'::regnamespace
         WHERE c.relkind <> 'r' OR to_regclass('public.gatepost_meta') IS NULL
            OR EXISTS (SELECT FROM unnest(o.columns) AS needed
                        WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = needed
                                             AND a.attnum > 0 AND NOT a.attisdropped)));
BEGIN
    IF foreign_tables IS NOT NULL THEN
        RAISE EXCEPTION 'this database has tables that Gatepost did not create and whose names it needs: %. Give Gatepost a '
                        'database of its own, or rename them', foreign_tables USING ERRCODE = 'duplicate_table';
    END IF;
END $do$;


-- Which version of this file the database has; `check` and startup compare it. It holds no tenant's data; the server can read
-- it.
CREATE TABLE IF NOT EXISTS gatepost_meta (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    checksum    text        NOT NULL,
    migrated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE gatepost_meta ADD COLUMN IF NOT EXISTS generation integer NOT NULL DEFAULT 0;
ALTER TABLE gatepost_meta ADD COLUMN IF NOT EXISTS revision   integer NOT NULL DEFAULT 0;


-- Tables ------------------------------------------------------------------------------------------------------------------
-- A tenant's id is text and never empty: an empty id could match a missing caller.
-- Ids of rows are random (122 bits) and created here. No unique constraint covers a value that a tenant chooses: a violation
-- would tell one tenant what another has.

CREATE TABLE IF NOT EXISTS data (
    id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id    text        NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 255),
    org_id     text        CHECK (char_length(org_id) BETWEEN 1 AND 255),         -- active at creation, NULL for none
    name       text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    payload    jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(payload) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS data_by_user ON data (user_id, created_at DESC, id DESC);     -- a page of one's own rows
CREATE INDEX IF NOT EXISTS data_by_org ON data (org_id, id);                             -- an administrator's delete

CREATE TABLE IF NOT EXISTS org_data (
    id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id text        NOT NULL CHECK (char_length(organization_id) BETWEEN 1 AND 255),
    created_by      text        NOT NULL CHECK (char_length(created_by) BETWEEN 1 AND 255),
    name            text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    payload         jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(payload) = 'object'),
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS org_data_by_org ON org_data (organization_id, created_at DESC, id DESC);

CREATE TABLE IF NOT EXISTS invoices (
    id              uuid          PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id text          NOT NULL CHECK (char_length(organization_id) BETWEEN 1 AND 255),
    created_by      text          NOT NULL CHECK (char_length(created_by) BETWEEN 1 AND 255),
    customer        text          NOT NULL CHECK (char_length(customer) BETWEEN 1 AND 200),
    amount          numeric(12,2) NOT NULL CHECK (amount >= 0 AND amount <> 'NaN'),      -- to Postgres NaN is >= 0
    currency        text          NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    due_on          date          CHECK (isfinite(due_on)),
    memo            text          CHECK (char_length(memo) <= 2000),
    created_at      timestamptz   NOT NULL DEFAULT now(),
    updated_at      timestamptz   NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS invoices_by_org ON invoices (organization_id, created_at DESC, id DESC);

-- API keys: a user's (user_id present; org_id is then the organisation it acts in) or an organisation's (org_id alone).
-- Only the SHA-256 of a secret is kept. A rotated key has two for a while.
CREATE TABLE IF NOT EXISTS api_keys (
    id                  text        PRIMARY KEY CHECK (char_length(id) BETWEEN 1 AND 255),
    hash                bytea       NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    previous_hash       bytea       UNIQUE CHECK (octet_length(previous_hash) = 32),
    previous_expires_at timestamptz CHECK (isfinite(previous_expires_at)),
    name                text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    user_id             text        CHECK (char_length(user_id) BETWEEN 1 AND 255),
    org_id              text        CHECK (char_length(org_id) BETWEEN 1 AND 255),
    org_role            text        CHECK (char_length(org_role) BETWEEN 1 AND 255),
    org_permissions     text[]      NOT NULL DEFAULT '{}' CHECK (array_position(org_permissions, NULL) IS NULL),
    scopes              text[]      NOT NULL DEFAULT '{}' CHECK (array_position(scopes, NULL) IS NULL),
    created_by          text        NOT NULL CHECK (char_length(created_by) BETWEEN 1 AND 255),
    created_by_key      text        CHECK (char_length(created_by_key) BETWEEN 1 AND 255),
    created_at          timestamptz NOT NULL DEFAULT now(),
    expires_at          timestamptz,
    revoked_at          timestamptz,
    last_used_at        timestamptz,
    CONSTRAINT api_keys_owner CHECK (user_id IS NOT NULL OR org_id IS NOT NULL),
    CONSTRAINT api_keys_rights CHECK (org_id IS NOT NULL OR (org_role IS NULL AND org_permissions = '{}'))
);
CREATE INDEX IF NOT EXISTS api_keys_by_user ON api_keys (user_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS api_keys_by_org ON api_keys (org_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS api_keys_by_maker ON api_keys (created_by_key) WHERE created_by_key IS NOT NULL;
-- The live keys, for the functions that end them in batches and for the bound on their number. All indexes of columns that older
-- schemas have are built before the first ALTER TABLE: until then keys can be looked up.
CREATE INDEX IF NOT EXISTS api_keys_live_by_user ON api_keys (user_id) WHERE revoked_at IS NULL;
CREATE INDEX IF NOT EXISTS api_keys_live_by_org ON api_keys (org_id) WHERE revoked_at IS NULL;
-- What a key depends on, recorded when it is created and checked when it is looked up: the keys that it descends from, and
-- those that requested its secrets. The end of one of them ends it, so that ending a key never has to find its descendants.
-- The trigger that fills in these columns (gatepost_key_lineage) bounds them.
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS depth               smallint NOT NULL DEFAULT 0;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS depends_on          text[]   NOT NULL DEFAULT '{}';
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS secret_depends_on   text[]   NOT NULL DEFAULT '{}';
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS previous_depends_on text[]   NOT NULL DEFAULT '{}';
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS rotated_by_key      text     CHECK (char_length(rotated_by_key) BETWEEN 1 AND 255);
CREATE INDEX IF NOT EXISTS api_keys_live_by_ancestor ON api_keys USING gin (depends_on) WHERE revoked_at IS NULL;
-- Keys from before these columns: what they depend on follows from which key created them. A key that is deeper than the bound
-- is revoked. The owner sees rows for this moment only; FORCE is set again below, in the same transaction.
ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY;
WITH RECURSIVE line (id, ancestor, next, deep) AS (
    SELECT k.id, k.created_by_key, m.created_by_key, 1 FROM api_keys AS k LEFT JOIN api_keys AS m ON m.id = k.created_by_key
     WHERE k.created_by_key IS NOT NULL AND k.depends_on = '{}'
    UNION ALL
    SELECT l.id, l.next, m.created_by_key, l.deep + 1 FROM line AS l LEFT JOIN api_keys AS m ON m.id = l.next
     WHERE l.next IS NOT NULL AND l.deep < 12),
found AS (SELECT id, array_agg(ancestor ORDER BY deep) AS ancestors, max(deep) AS deep, bool_or(deep = 12 AND next IS NOT NULL) AS cut
            FROM line GROUP BY id)
UPDATE api_keys AS k
   SET depends_on = f.ancestors, depth = f.deep, revoked_at = CASE WHEN f.cut THEN coalesce(k.revoked_at, now()) ELSE k.revoked_at END
  FROM found AS f WHERE k.id = f.id;


-- Triggers ----------------------------------------------------------------------------------------------------------------
-- They run with the rights of the role that changes the row (no definer), so they bypass nothing below.

-- updated_at is the server's. It always moves forward, so that two changes never share an ETag.
CREATE OR REPLACE FUNCTION gatepost_touch() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.updated_at := greatest(clock_timestamp(), OLD.updated_at + interval '1 microsecond');
    RETURN NEW;
END $$;

-- The serving role cannot read a hash, so it cannot keep a copy of the old one: this trigger does, whenever a new hash is
-- written. A revocation is permanent, and a revoked key gets no new secret.
CREATE OR REPLACE FUNCTION gatepost_key_changes() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF OLD.revoked_at IS NOT NULL AND (NEW.hash <> OLD.hash OR NEW.revoked_at IS DISTINCT FROM OLD.revoked_at) THEN
        RAISE EXCEPTION 'a revoked key stays revoked' USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.hash <> OLD.hash THEN
        NEW.previous_hash := CASE WHEN NEW.previous_expires_at > now() THEN OLD.hash END;
        NEW.previous_depends_on := CASE WHEN NEW.previous_hash IS NULL THEN '{}' ELSE OLD.secret_depends_on END;
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE TRIGGER touch BEFORE UPDATE ON data FOR EACH ROW EXECUTE FUNCTION gatepost_touch();
CREATE OR REPLACE TRIGGER touch BEFORE UPDATE ON org_data FOR EACH ROW EXECUTE FUNCTION gatepost_touch();
CREATE OR REPLACE TRIGGER touch BEFORE UPDATE ON invoices FOR EACH ROW EXECUTE FUNCTION gatepost_touch();
CREATE OR REPLACE TRIGGER changes BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION gatepost_key_changes();
REVOKE EXECUTE ON FUNCTION gatepost_touch(), gatepost_key_changes() FROM PUBLIC;      -- a trigger needs no such right


-- Row-level security ------------------------------------------------------------------------------------------------------
-- ENABLE alone exempts the owner; FORCE includes it. Without a policy for a role or a command there are no rows.
ALTER TABLE data     ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE org_data ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE invoices ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- The serving role's name is a setting of `migrate`, so the statements that name it are strings: %1$I below is that name,
-- quoted.
DO $do$
BEGIN
EXECUTE format($sql$

    -- data: a user's own rows, whatever the active organisation is. A new row must not name any organisation but the active
    -- one.
    DROP POLICY IF EXISTS own_select ON data;
    CREATE POLICY own_select ON data FOR SELECT TO %1$I
        USING (user_id = (SELECT NULLIF(current_setting('gatepost.user_id', true), '')));
    DROP POLICY IF EXISTS own_insert ON data;
    CREATE POLICY own_insert ON data FOR INSERT TO %1$I
        WITH CHECK (user_id = NULLIF(current_setting('gatepost.user_id', true), '')
                    AND (org_id IS NULL OR org_id = NULLIF(current_setting('gatepost.org_id', true), '')));
    DROP POLICY IF EXISTS own_update ON data;
    CREATE POLICY own_update ON data FOR UPDATE TO %1$I
        USING (user_id = NULLIF(current_setting('gatepost.user_id', true), ''))
        WITH CHECK (user_id = NULLIF(current_setting('gatepost.user_id', true), ''));
    DROP POLICY IF EXISTS own_delete ON data;
    CREATE POLICY own_delete ON data FOR DELETE TO %1$I
        USING (user_id = NULLIF(current_setting('gatepost.user_id', true), ''));

    -- An administrator sees and deletes the organisation's rows, but does not change them. Its setting is separate from the
    -- active organisation, so that a forgotten WHERE on any other route shows an administrator only their own rows.
    DROP POLICY IF EXISTS admin_select ON data;
    CREATE POLICY admin_select ON data FOR SELECT TO %1$I
        USING (COALESCE(org_id = NULLIF(current_setting('gatepost.admin_org_id', true), ''), false));
    DROP POLICY IF EXISTS admin_delete ON data;
    CREATE POLICY admin_delete ON data FOR DELETE TO %1$I
        USING (org_id = NULLIF(current_setting('gatepost.admin_org_id', true), ''));

    -- org_data, invoices: the active organisation's rows. A user cannot create a row in another user's name; for a
    -- caller that is not a user (an organisation's key) the handler sets created_by.
    DROP POLICY IF EXISTS org_select ON org_data;
    CREATE POLICY org_select ON org_data FOR SELECT TO %1$I
        USING (organization_id = (SELECT NULLIF(current_setting('gatepost.org_id', true), '')));
    DROP POLICY IF EXISTS org_insert ON org_data;
    CREATE POLICY org_insert ON org_data FOR INSERT TO %1$I
        WITH CHECK (organization_id = NULLIF(current_setting('gatepost.org_id', true), '')
                    AND created_by = coalesce(NULLIF(current_setting('gatepost.user_id', true), ''), created_by));
    DROP POLICY IF EXISTS org_update ON org_data;
    CREATE POLICY org_update ON org_data FOR UPDATE TO %1$I
        USING (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''))
        WITH CHECK (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''));
    DROP POLICY IF EXISTS org_delete ON org_data;
    CREATE POLICY org_delete ON org_data FOR DELETE TO %1$I
        USING (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''));

    DROP POLICY IF EXISTS org_select ON invoices;
    CREATE POLICY org_select ON invoices FOR SELECT TO %1$I
        USING (organization_id = (SELECT NULLIF(current_setting('gatepost.org_id', true), '')));
    DROP POLICY IF EXISTS org_insert ON invoices;
    CREATE POLICY org_insert ON invoices FOR INSERT TO %1$I
        WITH CHECK (organization_id = NULLIF(current_setting('gatepost.org_id', true), '')
                    AND created_by = coalesce(NULLIF(current_setting('gatepost.user_id', true), ''), created_by));
    DROP POLICY IF EXISTS org_update ON invoices;
    CREATE POLICY org_update ON invoices FOR UPDATE TO %1$I
        USING (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''))
        WITH CHECK (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''));
    DROP POLICY IF EXISTS org_delete ON invoices;
    CREATE POLICY org_delete ON invoices FOR DELETE TO %1$I
        USING (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''));

    -- api_keys: a user's own; the organisation's (those without a user) for its administrator only. A user's key acts only in
    -- the organisation that was active when it was created. Keys are revoked, never deleted: no policy for DELETE.
    DROP POLICY IF EXISTS own_select ON api_keys;
    CREATE POLICY own_select ON api_keys FOR SELECT TO %1$I
        USING (user_id = (SELECT NULLIF(current_setting('gatepost.user_id', true), '')));
    DROP POLICY IF EXISTS own_insert ON api_keys;
    CREATE POLICY own_insert ON api_keys FOR INSERT TO %1$I
        WITH CHECK (user_id = NULLIF(current_setting('gatepost.user_id', true), '')
                    AND (org_id IS NULL OR org_id = NULLIF(current_setting('gatepost.org_id', true), '')));
    DROP POLICY IF EXISTS own_update ON api_keys;
    CREATE POLICY own_update ON api_keys FOR UPDATE TO %1$I
        USING (user_id = NULLIF(current_setting('gatepost.user_id', true), ''))
        WITH CHECK (user_id = NULLIF(current_setting('gatepost.user_id', true), ''));
    DROP POLICY IF EXISTS admin_select ON api_keys;
    CREATE POLICY admin_select ON api_keys FOR SELECT TO %1$I
        USING (COALESCE(user_id IS NULL AND org_id = NULLIF(current_setting('gatepost.admin_org_id', true), ''), false));
    DROP POLICY IF EXISTS admin_insert ON api_keys;
    CREATE POLICY admin_insert ON api_keys FOR INSERT TO %1$I
        WITH CHECK (user_id IS NULL AND org_id = NULLIF(current_setting('gatepost.admin_org_id', true), ''));
    DROP POLICY IF EXISTS admin_update ON api_keys;
    CREATE POLICY admin_update ON api_keys FOR UPDATE TO %1$I
        USING (user_id IS NULL AND org_id = NULLIF(current_setting('gatepost.admin_org_id', true), ''))
        WITH CHECK (user_id IS NULL AND org_id = NULLIF(current_setting('gatepost.admin_org_id', true), ''));

    -- Grants. First all rights are revoked, so that this file lists all that there are. Then rights are granted by column:
    -- what the server owns (ids, times) cannot be written, and no UPDATE names a tenant's column, so no row can be moved to
    -- another tenant. Never TRUNCATE (no policy stops it), REFERENCES (an oracle for other tenants' ids) or TRIGGER.
    REVOKE ALL ON data, org_data, invoices, api_keys, gatepost_meta FROM PUBLIC, %1$I;
    GRANT SELECT, DELETE ON data, org_data, invoices TO %1$I;
    GRANT INSERT (user_id, org_id, name, payload), UPDATE (name, payload) ON data TO %1$I;
    GRANT INSERT (organization_id, created_by, name, payload), UPDATE (name, payload) ON org_data TO %1$I;
    GRANT INSERT (organization_id, created_by, customer, amount, currency, due_on, memo),
          UPDATE (customer, amount, currency, due_on, memo) ON invoices TO %1$I;
    GRANT SELECT ON gatepost_meta TO %1$I;
    -- A hash is written and never read back. A key's owner and its rights cannot be changed after it was created.
    GRANT SELECT (id, name, user_id, org_id, org_role, org_permissions, scopes, created_by, created_by_key, created_at,
                  expires_at, revoked_at, previous_expires_at, last_used_at, depth),
          INSERT (id, hash, name, user_id, org_id, org_role, org_permissions, scopes, created_by, created_by_key, expires_at),
          UPDATE (hash, previous_expires_at, revoked_at, last_used_at, rotated_by_key) ON api_keys TO %1$I;

$sql$, current_setting('gatepost.serving_role'));
END $do$;


-- Functions that run before the caller is known -------------------------------------------------------------------------------
-- A key is looked up to identify the caller, so no tenant's policy can apply. A definer function of the table owner would see
-- nothing (FORCE). So a role without login or members, with a policy and column grants of its own, owns the functions.
-- `check` refuses any other definer function that the serving role can execute.
DROP POLICY IF EXISTS auth_select ON api_keys;
CREATE POLICY auth_select ON api_keys FOR SELECT TO gatepost_auth USING (true);
REVOKE ALL ON data, org_data, invoices, api_keys, gatepost_meta FROM gatepost_auth, gatepost_sync, gatepost_audit;
-- It reads a key's hashes, rights and lifetime, and writes when the key was last used: nothing else.
GRANT SELECT (id, hash, previous_hash, previous_expires_at, user_id, org_id, org_role, org_permissions, scopes, created_by_key,
              created_at, expires_at, revoked_at, last_used_at, depth, depends_on, secret_depends_on, previous_depends_on),
      UPDATE (last_used_at) ON api_keys TO gatepost_auth;
DROP POLICY IF EXISTS auth_touch ON api_keys;
CREATE POLICY auth_touch ON api_keys FOR UPDATE TO gatepost_auth USING (true);


-- What Clerk reports: users, organisations, memberships, sign-outs ---------------------------------------------------------
-- Written by the functions of gatepost_sync alone; the serving role reads, under the policies below. Events come late, twice
-- and in any order: a row remembers the event it came from, and an older one changes nothing. A deleted row stays as a
-- tombstone without personal data, so that a late update finds it and does not restore it; no caller sees tombstones.
CREATE TABLE IF NOT EXISTS users (
    id              text        PRIMARY KEY CHECK (char_length(id) BETWEEN 1 AND 255),
    external_id     text,
    username        text,
    first_name      text,
    last_name       text,
    image_url       text,
    email           text,                                                      -- the primary one
    email_verified  boolean     NOT NULL DEFAULT false,
    banned          boolean     NOT NULL DEFAULT false,
    locked          boolean     NOT NULL DEFAULT false,
    public_metadata jsonb       NOT NULL DEFAULT '{}',
    created_at      timestamptz,                                               -- Clerk's times; NULL in a tombstone
    updated_at      timestamptz,
    deleted_at      timestamptz,
    last_event_at   timestamptz,
    last_event_id   text
);

CREATE TABLE IF NOT EXISTS organizations (
    id              text        PRIMARY KEY CHECK (char_length(id) BETWEEN 1 AND 255),
    name            text,
    slug            text,
    image_url       text,
    public_metadata jsonb       NOT NULL DEFAULT '{}',
    created_by      text,
    created_at      timestamptz,
    updated_at      timestamptz,
    deleted_at      timestamptz,
    last_event_at   timestamptz,
    last_event_id   text
);

-- One row for a pair: the newest membership of that user there. A user who leaves and returns has a new id.
CREATE TABLE IF NOT EXISTS memberships (
    organization_id text        NOT NULL CHECK (char_length(organization_id) BETWEEN 1 AND 255),
    user_id         text        NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 255),
    id              text        NOT NULL CHECK (char_length(id) BETWEEN 1 AND 255),
    role            text,                                                      -- with org:
    permissions     text[]      NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz,
    deleted_at      timestamptz,
    last_event_at   timestamptz,
    last_event_id   text,
    PRIMARY KEY (organization_id, user_id)
);
CREATE INDEX IF NOT EXISTS memberships_by_user ON memberships (user_id);
-- API keys created at this time or earlier have ended for good: by a ban, even if it is lifted, or by the loss of a membership,
-- even if the user comes back. Kept beside the state, so that ending keys is one write, however many there are.
ALTER TABLE users       ADD COLUMN IF NOT EXISTS keys_ended_at timestamptz;
-- When another issuer than Clerk last reported the account as disabled, and as enabled. Such a user may have no more than these.
ALTER TABLE users       ADD COLUMN IF NOT EXISTS disabled_at   timestamptz;
ALTER TABLE users       ADD COLUMN IF NOT EXISTS enabled_at    timestamptz;
ALTER TABLE memberships ADD COLUMN IF NOT EXISTS keys_ended_at timestamptz;
CREATE INDEX IF NOT EXISTS memberships_page ON memberships (organization_id, created_at DESC, id DESC);

-- Every accepted delivery, for a while: a second one with the same id does nothing, and `replay` applies them again.
CREATE TABLE IF NOT EXISTS webhook_inbox (
    id          text        PRIMARY KEY CHECK (char_length(id) BETWEEN 1 AND 255),
    provider    text        NOT NULL,
    type        text        NOT NULL,
    event_at    timestamptz NOT NULL,
    payload     jsonb       NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS webhook_inbox_in_order ON webhook_inbox (provider, event_at, id);
CREATE INDEX IF NOT EXISTS webhook_inbox_expiry ON webhook_inbox (expires_at);

-- Who is signed out although a token is still valid. Every worker holds all of it, so nothing that one tenant does may make it
-- grow: a subject has one row, an owner's keys together have one, and gatepost_revoke puts one wider row in the place of many
-- narrow ones of the same `owner`.
CREATE TABLE IF NOT EXISTS revocations (
    kind          text        NOT NULL,
    subject       text        NOT NULL CHECK (subject <> ''),                  -- of a membership: 'user organisation'
    issued_before timestamptz,                                                 -- credentials issued by then; NULL: all
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz NOT NULL,                                        -- when the last of those has expired
    PRIMARY KEY (kind, subject)
);
CREATE INDEX IF NOT EXISTS revocations_expiry ON revocations (expires_at);
ALTER TABLE revocations DROP CONSTRAINT IF EXISTS revocations_kind_check;
ALTER TABLE revocations ADD CONSTRAINT revocations_kind_check
    CHECK (kind IN ('session', 'user', 'subject', 'jti', 'membership', 'organization', 'role', 'key', 'keys'));
-- The transaction that last wrote the row: a reader fetches what was written since its previous read. A transaction that is in
-- progress during a read is not below the snapshot's xmin, so it is read the next time, however late it commits.
ALTER TABLE revocations ADD COLUMN IF NOT EXISTS changed_in xid8 NOT NULL DEFAULT pg_current_xact_id();
ALTER TABLE revocations ADD COLUMN IF NOT EXISTS owner text;                   -- the user or organisation whose row this is
DROP INDEX IF EXISTS revocations_changed;
CREATE INDEX IF NOT EXISTS revocations_pages ON revocations (changed_in, kind COLLATE "C", subject COLLATE "C");
CREATE INDEX IF NOT EXISTS revocations_by_owner ON revocations (kind, owner) WHERE owner IS NOT NULL;

-- Ends of access that still need tidying up: descendants of a key, keys and memberships of an owner. No access decision
-- depends on this table: access ended when the end was recorded. sweep_ended processes it in batches.
CREATE TABLE IF NOT EXISTS endings (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind     text        NOT NULL CHECK (kind IN ('key', 'ban', 'user', 'organization', 'membership')),
    subject  text        NOT NULL CHECK (subject <> ''),
    org_id   text,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

ALTER TABLE users         ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE organizations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE memberships   ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE webhook_inbox ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE revocations   ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE endings       ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

DO $do$
DECLARE
    name text;
BEGIN
EXECUTE format($sql$

    -- One's own memberships, and those of the active organisation. It names no other table, so that the policy of users can
    -- name this one.
    DROP POLICY IF EXISTS own_select ON memberships;
    CREATE POLICY own_select ON memberships FOR SELECT TO %1$I
        USING (user_id = (SELECT NULLIF(current_setting('gatepost.user_id', true), '')) AND deleted_at IS NULL);
    DROP POLICY IF EXISTS org_select ON memberships;
    CREATE POLICY org_select ON memberships FOR SELECT TO %1$I
        USING (COALESCE(organization_id = (SELECT NULLIF(current_setting('gatepost.org_id', true), '')), false)
               AND deleted_at IS NULL);

    -- The caller, and the members of the active organisation. The policies of memberships apply inside it too; the
    -- organisation is named as well, so that a wider policy there would show no user here. OFFSET 0 makes Postgres look up
    -- each user, instead of collecting the whole organisation first for a page of a few.
    DROP POLICY IF EXISTS own_select ON users;
    CREATE POLICY own_select ON users FOR SELECT TO %1$I
        USING (id = (SELECT NULLIF(current_setting('gatepost.user_id', true), '')) AND deleted_at IS NULL);
    DROP POLICY IF EXISTS org_select ON users;
    CREATE POLICY org_select ON users FOR SELECT TO %1$I
        USING (deleted_at IS NULL AND EXISTS (
            SELECT FROM memberships AS m
             WHERE m.user_id = users.id AND m.organization_id = (SELECT NULLIF(current_setting('gatepost.org_id', true), ''))
            OFFSET 0));

    DROP POLICY IF EXISTS org_select ON organizations;
    CREATE POLICY org_select ON organizations FOR SELECT TO %1$I
        USING (id = (SELECT NULLIF(current_setting('gatepost.org_id', true), '')) AND deleted_at IS NULL);

    -- Read only. The inbox and the revocations are for their functions alone: no grant, no policy.
    REVOKE ALL ON users, organizations, memberships, webhook_inbox, revocations, endings
        FROM PUBLIC, gatepost_auth, gatepost_sync, gatepost_audit, %1$I;
    GRANT SELECT (id, external_id, username, first_name, last_name, image_url, email, email_verified, banned, locked,
                  public_metadata, created_at, updated_at, deleted_at) ON users TO %1$I;
    GRANT SELECT (id, name, slug, image_url, public_metadata, created_by, created_at, updated_at, deleted_at)
          ON organizations TO %1$I;
    GRANT SELECT (organization_id, user_id, id, role, permissions, created_at, updated_at, deleted_at)
          ON memberships TO %1$I;

$sql$, current_setting('gatepost.serving_role'));

    FOREACH name IN ARRAY ARRAY['users', 'organizations', 'memberships', 'webhook_inbox', 'revocations', 'endings'] LOOP
        EXECUTE format('DROP POLICY IF EXISTS sync_all ON %I', name);
        EXECUTE format('CREATE POLICY sync_all ON %I FOR ALL TO gatepost_sync USING (true) WITH CHECK (true)', name);
    END LOOP;
END $do$;
GRANT SELECT, INSERT, UPDATE ON users, organizations, memberships TO gatepost_sync;
GRANT SELECT, INSERT, UPDATE, DELETE ON revocations, endings TO gatepost_sync;
GRANT SELECT, INSERT, DELETE ON webhook_inbox TO gatepost_sync;
-- The only thing it can do to API keys is end them. It sees no hash.
DROP POLICY IF EXISTS sync_select ON api_keys;
CREATE POLICY sync_select ON api_keys FOR SELECT TO gatepost_sync USING (true);
DROP POLICY IF EXISTS sync_update ON api_keys;
CREATE POLICY sync_update ON api_keys FOR UPDATE TO gatepost_sync USING (true) WITH CHECK (revoked_at IS NOT NULL);
GRANT SELECT (id, user_id, org_id, created_by_key, created_at, revoked_at, depends_on), UPDATE (revoked_at) ON api_keys
      TO gatepost_sync;

-- What a key may do depends on what is known about its owner: whether it is gone or banned, and what its membership allows.
DROP POLICY IF EXISTS auth_select ON users;
CREATE POLICY auth_select ON users FOR SELECT TO gatepost_auth USING (true);
DROP POLICY IF EXISTS auth_select ON organizations;
CREATE POLICY auth_select ON organizations FOR SELECT TO gatepost_auth USING (true);
DROP POLICY IF EXISTS auth_select ON memberships;
CREATE POLICY auth_select ON memberships FOR SELECT TO gatepost_auth USING (true);
GRANT SELECT (id, banned, deleted_at, keys_ended_at, disabled_at, enabled_at) ON users TO gatepost_auth;
GRANT SELECT (id, deleted_at) ON organizations TO gatepost_auth;
GRANT SELECT (organization_id, user_id, role, permissions, deleted_at, keys_ended_at) ON memberships TO gatepost_auth;

-- The audit log -------------------------------------------------------------------------------------------------------------
-- Who did what, allowed or denied, and never a value: which row, which columns changed, by whom, in which request. Writes are
-- noted by a trigger (at the end of this file), which no handler can forget; what the gate denied is recorded by audit_denied.
-- Only the functions of gatepost_audit can add an entry, and no role can change one.
CREATE TABLE IF NOT EXISTS audit_log (
    -- A uuid of version 7 (RFC 9562 5.7): it begins with the time, so that new entries are together at the end of the index
    -- and old ones at its beginning; and unlike a counter it does not show one tenant how much the others do.
    id         uuid        PRIMARY KEY DEFAULT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING
                               substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                               FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    org_id     text,                                          -- the row's organisation; for a denial, the caller's
    user_id    text,                                          -- who did it, if that was a user or a user's key
    actor      text        NOT NULL,                          -- the same, or key:<id>, anonymous, system, operator
    provider   text,                                          -- for a denial: which provider identified the caller
    action     text        NOT NULL CHECK (action IN ('insert', 'update', 'delete', 'denied')),
    target     text        NOT NULL,                          -- the table; for a denial, method and route
    row_id     text,
    changed    text[],                                        -- the names of the columns that an update changed
    reason     text,                                          -- for a denial
    times      integer     NOT NULL DEFAULT 1,                -- for a denial: how many identical ones in quick succession
    request_id text                                           -- X-Request-Id of the response; NULL outside requests
);
-- Who really acted, if that was not the user: the `act` of the token. NULL without impersonation.
ALTER TABLE audit_log ADD COLUMN IF NOT EXISTS impersonator text;
CREATE INDEX IF NOT EXISTS audit_log_by_org ON audit_log (org_id, created_at DESC, id DESC) WHERE org_id IS NOT NULL;
ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- Not even the owner or a superuser deletes entries: only audit_prune, which gatepost_audit owns. It raises even if no row
-- matches.
CREATE OR REPLACE FUNCTION gatepost_append_only() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_user = 'gatepost_audit' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'insufficient_privilege';
END $$;
REVOKE EXECUTE ON FUNCTION gatepost_append_only() FROM PUBLIC;
CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION gatepost_append_only();

DO $do$
BEGIN
EXECUTE format($sql$
    -- An organisation's administrator reads its entries, on a route that requires the role. Entries without an organisation
    -- are for the operator to read. This policy also tells the trigger which role is the serving role.
    DROP POLICY IF EXISTS admin_select ON audit_log;
    CREATE POLICY admin_select ON audit_log FOR SELECT TO %1$I
        USING (org_id = (SELECT NULLIF(current_setting('gatepost.admin_org_id', true), '')));
    REVOKE ALL ON audit_log FROM PUBLIC, gatepost_auth, gatepost_sync, gatepost_audit, %1$I;
    GRANT SELECT ON audit_log TO %1$I;
$sql$, current_setting('gatepost.serving_role'));
END $do$;
DROP POLICY IF EXISTS audit_select ON audit_log;
CREATE POLICY audit_select ON audit_log FOR SELECT TO gatepost_audit USING (true);
DROP POLICY IF EXISTS audit_insert ON audit_log;
CREATE POLICY audit_insert ON audit_log FOR INSERT TO gatepost_audit WITH CHECK (true);
DROP POLICY IF EXISTS audit_delete ON audit_log;
CREATE POLICY audit_delete ON audit_log FOR DELETE TO gatepost_audit USING (true);
GRANT SELECT, INSERT, DELETE ON audit_log TO gatepost_audit;


-- Responses that are kept for a repeated request (Idempotency-Key) ----------------------------------------------------------
-- Written in the transaction of the effect itself, so that there is either both or neither. The row's name is a SHA-256 over
-- the caller, the route and the client's key, so tenants never share one and its uniqueness reveals nothing. Callers
-- see only their own rows; no row is changed, and only expired rows are deleted.
CREATE TABLE IF NOT EXISTS idempotency_keys (
    hash        bytea       PRIMARY KEY CHECK (octet_length(hash) = 32),
    user_id     text        CHECK (char_length(user_id) BETWEEN 1 AND 255),
    org_id      text        CHECK (char_length(org_id) BETWEEN 1 AND 255),
    fingerprint bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),   -- of the request that the key was used for
    status      smallint    NOT NULL CHECK (status BETWEEN 200 AND 399),
    headers     jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(headers) = 'object'),
    body        bytea       CHECK (octet_length(body) <= 262144),
    withheld    text        CHECK (withheld IN ('secret', 'answer')),          -- why there is no body
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL CHECK (isfinite(expires_at)),
    CONSTRAINT idempotency_keys_owner CHECK (user_id IS NOT NULL OR org_id IS NOT NULL),
    CONSTRAINT idempotency_keys_kept CHECK ((body IS NULL) = (withheld IS NOT NULL))
);
CREATE INDEX IF NOT EXISTS idempotency_keys_expiry ON idempotency_keys (expires_at);
ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
DO $do$
BEGIN
EXECUTE format($sql$

    -- Both must be the caller's, "none" included: what a user did in one organisation is not repeated in another. Never (none,
    -- none), which would match every caller.
    DROP POLICY IF EXISTS own_select ON idempotency_keys;
    CREATE POLICY own_select ON idempotency_keys FOR SELECT TO %1$I
        USING (user_id IS NOT DISTINCT FROM NULLIF(current_setting('gatepost.user_id', true), '')
               AND org_id IS NOT DISTINCT FROM NULLIF(current_setting('gatepost.org_id', true), ''));
    DROP POLICY IF EXISTS own_insert ON idempotency_keys;
    CREATE POLICY own_insert ON idempotency_keys FOR INSERT TO %1$I
        WITH CHECK (user_id IS NOT DISTINCT FROM NULLIF(current_setting('gatepost.user_id', true), '')
                    AND org_id IS NOT DISTINCT FROM NULLIF(current_setting('gatepost.org_id', true), ''));
    DROP POLICY IF EXISTS expired_delete ON idempotency_keys;
    CREATE POLICY expired_delete ON idempotency_keys FOR DELETE TO %1$I
        USING (user_id IS NOT DISTINCT FROM NULLIF(current_setting('gatepost.user_id', true), '')
               AND org_id IS NOT DISTINCT FROM NULLIF(current_setting('gatepost.org_id', true), '') AND expires_at <= now());

    REVOKE ALL ON idempotency_keys FROM PUBLIC, gatepost_auth, gatepost_sync, gatepost_audit, %1$I;
    GRANT SELECT, DELETE, INSERT (hash, user_id, org_id, fingerprint, status, headers, body, withheld, expires_at)
          ON idempotency_keys TO %1$I;

$sql$, current_setting('gatepost.serving_role'));
END $do$;
-- The role that prunes sees which rows have expired, but not whose they are or what the response was.
DROP POLICY IF EXISTS sync_select ON idempotency_keys;
CREATE POLICY sync_select ON idempotency_keys FOR SELECT TO gatepost_sync USING (expires_at <= now());
DROP POLICY IF EXISTS sync_delete ON idempotency_keys;
CREATE POLICY sync_delete ON idempotency_keys FOR DELETE TO gatepost_sync USING (expires_at <= now());
-- Locking a row before deleting it takes the right to update one of its columns, and a policy that makes the row visible for
-- it.
DROP POLICY IF EXISTS sync_update ON idempotency_keys;
CREATE POLICY sync_update ON idempotency_keys FOR UPDATE TO gatepost_sync USING (expires_at <= now()) WITH CHECK (false);
GRANT SELECT (hash, expires_at), UPDATE (expires_at), DELETE ON idempotency_keys TO gatepost_sync;

-- Tickets for live answers ----------------------------------------------------------------------------------------------------
-- A browser's EventSource or WebSocket sends a ticket in place of a header: once, for one path, within half a minute. Only the
-- SHA-256 of a ticket is kept, with the caller whom it stands for. The serving role has no right to this table: only the two
-- functions of gatepost_auth use it. It is UNLOGGED, so that no replica and no archive contains the claims of callers' tokens.
CREATE UNLOGGED TABLE IF NOT EXISTS gatepost_tickets (
    hash       bytea       PRIMARY KEY CHECK (octet_length(hash) = 32),
    caller     text        NOT NULL CHECK (char_length(caller) BETWEEN 1 AND 1000),      -- as whom its maker is counted
    path       text        NOT NULL CHECK (char_length(path) BETWEEN 1 AND 2000),
    identity   text        NOT NULL CHECK (octet_length(identity) <= 131072),
    expires_at timestamptz NOT NULL CHECK (isfinite(expires_at))
);
CREATE INDEX IF NOT EXISTS gatepost_tickets_by_caller ON gatepost_tickets (caller, expires_at);
CREATE INDEX IF NOT EXISTS gatepost_tickets_expiry ON gatepost_tickets (expires_at);
ALTER TABLE gatepost_tickets ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
DO $do$
BEGIN
    EXECUTE format('REVOKE ALL ON gatepost_tickets FROM PUBLIC, gatepost_auth, gatepost_sync, gatepost_audit, %I',
                   current_setting('gatepost.serving_role'));
END $do$;
DROP POLICY IF EXISTS auth_all ON gatepost_tickets;
CREATE POLICY auth_all ON gatepost_tickets FOR ALL TO gatepost_auth USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE, UPDATE (expires_at) ON gatepost_tickets TO gatepost_auth;       -- UPDATE: to lock a row, and skip it

-- To create a function that belongs to gatepost_auth, the owner must be able to become that role, for this transaction only:
-- an owner that kept the membership would inherit USING (true). A superuser can become any role and needs no membership.
-- Postgres 16+ gives the creator of a role ADMIN over it, without INHERIT and SET; that remains and gives access to no table.
DO $do$
DECLARE
    options text := CASE WHEN current_setting('server_version_num')::int >= 160000
                         THEN 'WITH INHERIT FALSE, SET TRUE' ELSE '' END;
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE format('GRANT gatepost_auth TO %I %s', current_user, options);
        EXECUTE format('GRANT gatepost_sync TO %I %s', current_user, options);
        EXECUTE format('GRANT gatepost_audit TO %I %s', current_user, options);
    END IF;
END $do$;
GRANT CREATE ON SCHEMA public TO gatepost_auth, gatepost_sync, gatepost_audit;

SET LOCAL ROLE gatepost_auth;

-- Whether the owner with these ids has ended, for one of its keys that was created at `made`. A tombstone counts as ended; no
-- row means that nothing is known (keys need no webhooks). NULL for `made`: a key of the settings, which the operator vouches
-- for: it has ended while the user is banned or the account disabled.
CREATE OR REPLACE FUNCTION public.gatepost_owner_ended(whose text, org text, made timestamptz) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
    SELECT EXISTS (SELECT FROM public.users AS u WHERE u.id = whose
                      AND (u.banned OR u.deleted_at IS NOT NULL OR made <= u.keys_ended_at
                           OR (made IS NULL AND u.disabled_at >= coalesce(u.enabled_at, '-infinity'))))
        OR EXISTS (SELECT FROM public.organizations AS o WHERE o.id = org AND o.deleted_at IS NOT NULL)
        OR EXISTS (SELECT FROM public.memberships AS m WHERE m.organization_id = org AND m.user_id = whose
                      AND (m.deleted_at IS NOT NULL OR made <= m.keys_ended_at))
$$;

-- The key with this SHA-256, or nothing. An earlier secret counts until its overlap ends (`until`). Expired and revoked keys
-- are returned as such: the holder of the secret may learn why it is refused. The rights are the stored ones *and* those of
-- the recorded memberships of its owner and of every key that it depends on. `ended`: its owner, or one of those keys or
-- its owner, has ended. `depends_on` names the static keys among them, which the server checks; `watched` the owners after whose
-- revocations (kind 'keys') this must be read again. `read_at` is when this was true, by the clock that also dates
-- revocations. The work is bounded: so are the keys that a key depends on. search_path is pinned and every name qualified, so
-- no caller can substitute another table or operator; row_security is on, because `migrate` and pg_dump turn it off.
DO $do$
BEGIN
    IF pg_get_function_result(to_regprocedure('public.key_by_hash(bytea)')) NOT LIKE '%watched%' THEN
        DROP FUNCTION public.key_by_hash(bytea);               -- an older version, with other columns
    END IF;
END $do$;
CREATE OR REPLACE FUNCTION public.key_by_hash(wanted bytea)
RETURNS TABLE (id text, user_id text, org_id text, org_role text, org_permissions text[], scopes text[], depends_on text[],
               created_at timestamptz, expires_at timestamptz, revoked_at timestamptz, ended boolean, until timestamptz,
               read_at timestamptz, watched text[])
LANGUAGE sql STABLE STRICT SECURITY DEFINER ROWS 1
SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
    WITH found AS (
        SELECT k.*, k.depends_on || CASE WHEN k.hash = wanted THEN k.secret_depends_on ELSE k.previous_depends_on END AS needs
          FROM (SELECT a.id, a.hash, a.user_id, a.org_id, a.org_role, a.org_permissions, a.scopes, a.created_at, a.expires_at,
                       a.revoked_at, a.previous_expires_at, a.depends_on, a.secret_depends_on, a.previous_depends_on
                  FROM public.api_keys AS a
                 WHERE a.hash = wanted OR (a.previous_hash = wanted AND a.previous_expires_at > now())) AS k),
    -- the key itself, and those it depends on
    line AS (
        SELECT f.id, f.user_id, f.org_id, f.created_at, false AS over FROM found AS f
        UNION ALL
        SELECT n.id, a.user_id, a.org_id, a.created_at,
               a.id IS NULL OR a.revoked_at IS NOT NULL OR coalesce(a.expires_at <= now(), false)
          FROM found AS f, unnest(f.needs) AS n (id) LEFT JOIN public.api_keys AS a ON a.id = n.id
         WHERE n.id NOT LIKE 'static:%'),
    allowed AS (SELECT m.role, m.permissions FROM line AS l
                  JOIN public.memberships AS m ON m.organization_id = l.org_id AND m.user_id = l.user_id)
    SELECT f.id, f.user_id, f.org_id,
           CASE WHEN NOT EXISTS (SELECT FROM allowed AS w WHERE regexp_replace(w.role, '^(org:)+', '')
                                                 IS DISTINCT FROM regexp_replace(f.org_role, '^(org:)+', ''))
                THEN f.org_role END,
           ARRAY(SELECT p FROM unnest(f.org_permissions) AS p
                  WHERE NOT EXISTS (SELECT FROM allowed AS w WHERE NOT p = ANY (w.permissions))),
           f.scopes, ARRAY(SELECT n FROM unnest(f.needs) AS n WHERE n LIKE 'static:%'), f.created_at, f.expires_at, f.revoked_at,
           EXISTS (SELECT FROM line AS l WHERE l.over OR public.gatepost_owner_ended(l.user_id, l.org_id, l.created_at)),
           CASE WHEN f.hash <> wanted THEN f.previous_expires_at END, now(),
           ARRAY(SELECT DISTINCT s FROM line AS l, unnest(ARRAY['user:' || l.user_id, 'organization:' || l.org_id]) AS s
                  WHERE s IS NOT NULL)
      FROM found AS f
$$;

-- Whether the owner of a key in the settings has ended, by what is recorded now; and whether a membership of the owner is recorded,
-- with its role and permissions.
DO $do$
BEGIN
    IF pg_get_function_result(to_regprocedure('public.key_owner_ended(text, text)')) NOT LIKE '%permissions%' THEN
        DROP FUNCTION public.key_owner_ended(text, text);      -- an older version, with fewer columns
    END IF;
END $do$;
CREATE OR REPLACE FUNCTION public.key_owner_ended(user_id text, org_id text)
RETURNS TABLE (ended boolean, read_at timestamptz, member boolean, role text, permissions text[])
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
    SELECT public.gatepost_owner_ended($1, $2, NULL), now(), m.user_id IS NOT NULL, m.role, m.permissions
      FROM (VALUES (1)) AS one LEFT JOIN public.memberships AS m ON m.organization_id = $2 AND m.user_id = $1
$$;

-- What a key depends on, whichever key creates or rotates it: read from the keys themselves. Raises program_limit_exceeded
-- if the bound is exceeded: three keys below each other, and at most twelve that one key can depend on.
CREATE OR REPLACE FUNCTION public.gatepost_key_lineage() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    by_key text := CASE WHEN TG_OP = 'INSERT' THEN NEW.created_by_key ELSE NEW.rotated_by_key END;
    needs  text[] := '{}';
    deep   integer := 0;
BEGIN
    IF by_key LIKE 'static:%' THEN
        needs := ARRAY[by_key];
    ELSIF by_key IS NOT NULL THEN
        SELECT k.depth, k.id || k.depends_on || k.secret_depends_on INTO deep, needs
          FROM public.api_keys AS k WHERE k.id = by_key AND k.revoked_at IS NULL;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the key that makes this one is over' USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    needs := ARRAY(SELECT DISTINCT n FROM unnest(needs) AS n
                    WHERE TG_OP = 'INSERT' OR (n <> NEW.id AND NOT n = ANY (NEW.depends_on)));
    IF TG_OP = 'INSERT' THEN
        NEW.depth := CASE WHEN by_key IS NULL THEN 0 ELSE deep + 1 END;
        NEW.depends_on := needs;
    ELSE
        NEW.secret_depends_on := needs;
    END IF;
    IF NEW.depth > 3 OR cardinality(needs) > 12 THEN
        RAISE EXCEPTION 'too many keys below each other' USING ERRCODE = 'program_limit_exceeded';
    END IF;
    RETURN NEW;
END $$;

-- Record when keys were last used; returns the number of rows. At most once a minute for all workers, and a row that is locked
-- is skipped: this must not wait.
CREATE OR REPLACE FUNCTION public.touch_keys(ids text[], times timestamptz[]) RETURNS bigint
LANGUAGE sql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
    WITH used AS (SELECT t.id, least(max(t.at), now()) AS at FROM unnest(ids, times) AS t (id, at) GROUP BY t.id),
         mine AS (SELECT k.id, used.at FROM public.api_keys AS k JOIN used ON used.id = k.id
                   WHERE k.last_used_at IS NULL OR k.last_used_at < used.at - interval '55 seconds'
                   ORDER BY k.id FOR UPDATE OF k SKIP LOCKED),
         done AS (UPDATE public.api_keys AS k SET last_used_at = mine.at FROM mine WHERE k.id = mine.id RETURNING 1)
    SELECT count(*) FROM done
$$;

-- Keep a ticket for `seconds`; false if its maker already has `most`. Each call also deletes expired ones, more than it adds.
CREATE OR REPLACE FUNCTION public.keep_stream_ticket(hash bytea, caller text, path text, identity text, seconds integer, most integer)
RETURNS boolean LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
BEGIN
    DELETE FROM public.gatepost_tickets AS t
     WHERE t.hash IN (SELECT o.hash FROM public.gatepost_tickets AS o WHERE o.expires_at <= now()
                       ORDER BY o.expires_at LIMIT 20 FOR UPDATE SKIP LOCKED);
    IF most <= (SELECT count(*) FROM (SELECT FROM public.gatepost_tickets AS t
                                       WHERE t.caller = $2 AND t.expires_at > now() LIMIT most) AS live) THEN
        RETURN false;
    END IF;
    INSERT INTO public.gatepost_tickets VALUES ($1, $2, $3, $4, now() + make_interval(secs => least(seconds, 60)));
    RETURN true;
END $$;

-- Return the caller of the ticket with this SHA-256 for this path, or no row. The first call deletes the ticket.
CREATE OR REPLACE FUNCTION public.take_stream_ticket(wanted bytea, on_path text) RETURNS TABLE (identity text)
LANGUAGE sql STRICT SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
    DELETE FROM public.gatepost_tickets AS t WHERE t.hash = wanted AND t.path = on_path AND t.expires_at > now() RETURNING t.identity
$$;
REVOKE ALL ON FUNCTION public.keep_stream_ticket(bytea, text, text, text, integer, integer), public.take_stream_ticket(bytea, text)
    FROM PUBLIC;
DO $do$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION public.keep_stream_ticket(bytea, text, text, text, integer, integer),
                    public.take_stream_ticket(bytea, text) TO %I', current_setting('gatepost.serving_role'));
END $do$;

REVOKE ALL ON FUNCTION public.key_by_hash(bytea), public.touch_keys(text[], timestamptz[]), public.key_owner_ended(text, text),
    public.gatepost_owner_ended(text, text, timestamptz), public.gatepost_key_lineage() FROM PUBLIC;
DO $do$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION public.key_by_hash(bytea), public.touch_keys(text[], timestamptz[]),
                    public.key_owner_ended(text, text) TO %I', current_setting('gatepost.serving_role'));
    EXECUTE format('GRANT EXECUTE ON FUNCTION public.gatepost_key_lineage() TO %I', current_setting('gatepost.owner'));
END $do$;
SELECT set_config('role', current_setting('gatepost.owner'), true);
CREATE OR REPLACE TRIGGER lineage BEFORE INSERT OR UPDATE OF hash ON api_keys
    FOR EACH ROW EXECUTE FUNCTION public.gatepost_key_lineage();
SET LOCAL ROLE gatepost_auth;
DO $do$
BEGIN
    EXECUTE format('REVOKE EXECUTE ON FUNCTION public.gatepost_key_lineage() FROM %I', current_setting('gatepost.owner'));
END $do$;


-- Events without a caller -------------------------------------------------------------------------------------------
SET LOCAL ROLE gatepost_sync;

-- Revoke a subject's credentials issued at `before` or earlier (NULL: all of them), until `until`, and tell every worker.
-- Two revocations of one subject combine into the stronger one, in whichever order they arrive. An `of_owner` with `most`
-- rows of a kind gets one wider row in their place: tokens of the user, or in the organisation, issued until now. Clients
-- fetch fresh ones. A row that two owners have caused is neither's: the wider row would not take its place for the other one.
DROP FUNCTION IF EXISTS public.gatepost_revoke(text, text, timestamptz, timestamptz);
CREATE OR REPLACE FUNCTION public.gatepost_revoke(of_kind text, whom text, before timestamptz, until timestamptz,
                                                  of_owner text DEFAULT NULL, most integer DEFAULT 50)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    latest timestamptz;
    ends   timestamptz;
BEGIN
    IF until <= now() THEN                          -- replayed: what it applied to expired long ago
        RETURN;
    END IF;
    IF of_owner IS NOT NULL AND most <= (SELECT count(*) FROM (SELECT FROM public.revocations AS r
                                          WHERE r.kind = of_kind AND r.owner = of_owner LIMIT most) AS rows) THEN
        WITH gone AS (DELETE FROM public.revocations AS r WHERE r.kind = of_kind AND r.owner = of_owner
                       RETURNING r.issued_before, r.expires_at)
        SELECT max(g.issued_before), max(g.expires_at) INTO latest, ends FROM gone AS g;
        -- None of them ends sooner by this: the issuer's clock may be ahead, and a replayed event is remembered for less time.
        PERFORM public.gatepost_revoke(
            CASE of_kind WHEN 'session' THEN 'user' WHEN 'keys' THEN 'keys' ELSE 'organization' END,
            CASE of_kind WHEN 'keys' THEN 'organization:' ELSE '' END || of_owner,
            greatest(clock_timestamp(), before, latest), greatest(until, ends));
        RETURN;
    END IF;
    INSERT INTO public.revocations AS r (kind, subject, issued_before, expires_at, owner)
    VALUES (of_kind, whom, before, until, of_owner)
    ON CONFLICT (kind, subject) DO UPDATE
        SET issued_before = CASE WHEN r.issued_before IS NOT NULL AND excluded.issued_before IS NOT NULL
                                 THEN greatest(r.issued_before, excluded.issued_before) END,
            expires_at = greatest(r.expires_at, excluded.expires_at), changed_in = pg_current_xact_id(),
            owner = CASE WHEN r.owner = excluded.owner THEN r.owner END;
    PERFORM pg_notify('gatepost_revocations', '');
END $$;

-- Whatever was read about an owner's keys until now is no longer valid: one row for each owner, however many keys there are.
-- Ten minutes are far longer than a worker remembers a key.
CREATE OR REPLACE FUNCTION public.gatepost_keys_changed(whom text, org text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
BEGIN
    PERFORM public.gatepost_revoke('keys', CASE WHEN whom IS NULL THEN 'organization:' || org ELSE 'user:' || whom END,
                                   clock_timestamp(), clock_timestamp() + interval '10 minutes');
END $$;

-- Apply a membership event (`body` as in gatepost_apply). The newest membership of a pair wins, by its creation;
-- of one membership the newest state wins; a deletion, also that of the user or the organisation, is permanent.
CREATE OR REPLACE FUNCTION public.gatepost_apply_membership(msg text, what text, at timestamptz, body jsonb, until timestamptz)
RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    org     text        := body->>'organization_id';
    who     text        := body->>'user_id';
    rights  text[]      := ARRAY(SELECT jsonb_array_elements_text(body->'permissions'));
    born    timestamptz := (body->>'created_at')::timestamptz;
    changed timestamptz := (body->>'updated_at')::timestamptz;
    moment  timestamptz := greatest(at, (body->>'updated_at')::timestamptz);
    ending  boolean     := what = 'organizationMembership.deleted';
    gone    timestamptz;
    old     public.memberships;
BEGIN
    SELECT * INTO old FROM public.memberships AS m WHERE m.organization_id = org AND m.user_id = who;
    gone := least((SELECT u.deleted_at FROM public.users AS u WHERE u.id = who),
                  (SELECT o.deleted_at FROM public.organizations AS o WHERE o.id = org), CASE WHEN ending THEN moment END);
    IF ending THEN                                  -- even if a newer membership is known: tokens issued before it still end
        PERFORM public.gatepost_revoke('membership', who || ' ' || org, moment, until, org, 500);
    END IF;
    IF old.id = body->>'id' THEN
        gone := least(gone, old.deleted_at);
        IF gone IS NULL AND (old.updated_at, old.last_event_at, old.last_event_id) > (changed, at, msg) THEN
            RETURN 'stale';
        END IF;
    ELSIF (old.created_at, old.id) > (born, body->>'id') THEN
        RETURN 'stale';
    END IF;
    -- A tombstone is the same, whatever came before it.
    INSERT INTO public.memberships AS m (organization_id, user_id, id, role, permissions, created_at, updated_at, deleted_at,
                                         last_event_at, last_event_id, keys_ended_at)
    VALUES (org, who, body->>'id', CASE WHEN gone IS NULL THEN body->>'role' END,
            CASE WHEN gone IS NULL THEN rights ELSE '{}' END, born, CASE WHEN gone IS NULL THEN changed END, gone,
            CASE WHEN gone IS NULL THEN at END, CASE WHEN gone IS NULL THEN msg END,
            CASE WHEN gone IS NOT NULL THEN clock_timestamp() END)
    ON CONFLICT (organization_id, user_id) DO UPDATE
        SET (id, role, permissions, created_at, updated_at, deleted_at, last_event_at, last_event_id, keys_ended_at) =
            (excluded.id, excluded.role, excluded.permissions, excluded.created_at, excluded.updated_at, excluded.deleted_at,
             excluded.last_event_at, excluded.last_event_id, greatest(m.keys_ended_at, excluded.keys_ended_at));
    IF gone IS NOT NULL AND old.id = body->>'id' AND old.deleted_at IS NOT NULL THEN
        RETURN 'stale';
    END IF;
    IF ending THEN
        INSERT INTO public.endings (kind, subject, org_id) VALUES ('membership', who, org);
    -- Tokens still have the old role. A change of a membership that was never seen before may be a change of the role.
    ELSIF gone IS NULL AND (what = 'organizationMembership.updated' OR old.id IS NOT NULL)
          AND (old.role, old.permissions) IS DISTINCT FROM (body->>'role', rights) THEN
        PERFORM public.gatepost_revoke('membership', who || ' ' || org, moment, until, org, 500);
    END IF;
    RETURN 'applied';
END $$;

-- End memberships of a deleted user ('user') or organisation, at most `at_most`; returns true if none is left. Locked rows
-- are skipped.
CREATE OR REPLACE FUNCTION public.gatepost_end_memberships(of_kind text, whom text, at_most integer) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    gone  timestamptz;
    pairs text[];
BEGIN
    IF of_kind = 'user' THEN
        SELECT u.deleted_at INTO gone FROM public.users AS u WHERE u.id = whom;
        pairs := ARRAY(SELECT m.organization_id FROM public.memberships AS m WHERE m.user_id = whom
                          AND (m.deleted_at IS NULL OR m.deleted_at > gone) LIMIT at_most FOR UPDATE SKIP LOCKED);
        UPDATE public.memberships AS m
           SET (role, permissions, updated_at, deleted_at, last_event_at, last_event_id, keys_ended_at) =
               (NULL, '{}', NULL, least(m.deleted_at, gone), NULL, NULL, greatest(m.keys_ended_at, clock_timestamp()))
         WHERE m.user_id = whom AND m.organization_id = ANY (pairs);
        RETURN NOT EXISTS (SELECT FROM public.memberships AS m WHERE m.user_id = whom
                              AND (m.deleted_at IS NULL OR m.deleted_at > gone));
    END IF;
    SELECT o.deleted_at INTO gone FROM public.organizations AS o WHERE o.id = whom;
    pairs := ARRAY(SELECT m.user_id FROM public.memberships AS m WHERE m.organization_id = whom
                      AND (m.deleted_at IS NULL OR m.deleted_at > gone) LIMIT at_most FOR UPDATE SKIP LOCKED);
    UPDATE public.memberships AS m
       SET (role, permissions, updated_at, deleted_at, last_event_at, last_event_id, keys_ended_at) =
           (NULL, '{}', NULL, least(m.deleted_at, gone), NULL, NULL, greatest(m.keys_ended_at, clock_timestamp()))
     WHERE m.organization_id = whom AND m.user_id = ANY (pairs);
    RETURN NOT EXISTS (SELECT FROM public.memberships AS m WHERE m.organization_id = whom
                          AND (m.deleted_at IS NULL OR m.deleted_at > gone));
END $$;

-- Apply one event; returns 'applied', 'stale' (we know newer), or 'stored' (nothing to apply). `body` has the fields of our
-- tables, already checked, times as RFC 3339 texts; {} if the event could not be read. `until` ends its revocations.
CREATE OR REPLACE FUNCTION public.gatepost_apply(msg text, what text, at timestamptz, body jsonb, until timestamptz)
RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    me     text        := body->>'id';
    moment timestamptz := greatest(at, (body->>'updated_at')::timestamptz);
BEGIN
    IF me IS NULL THEN
        RETURN 'stored';
    END IF;
    PERFORM set_config('gatepost.actor', 'system', true);          -- for the audit log: no caller did this
    CASE what
    WHEN 'user.created', 'user.updated' THEN
        IF (body->>'banned')::boolean OR (body->>'locked')::boolean THEN
            PERFORM public.gatepost_revoke('user', me, moment, until);
        END IF;
        INSERT INTO public.users AS u (id, external_id, username, first_name, last_name, image_url, email, email_verified, banned,
                                       locked, public_metadata, created_at, updated_at, last_event_at, last_event_id)
        VALUES (me, body->>'external_id', body->>'username', body->>'first_name', body->>'last_name', body->>'image_url',
                body->>'email', (body->>'email_verified')::boolean, (body->>'banned')::boolean, (body->>'locked')::boolean,
                body->'public_metadata', (body->>'created_at')::timestamptz, (body->>'updated_at')::timestamptz, at, msg)
        ON CONFLICT (id) DO UPDATE
            SET (external_id, username, first_name, last_name, image_url, email, email_verified, banned, locked,
                 public_metadata, created_at, updated_at, last_event_at, last_event_id) =
                (excluded.external_id, excluded.username, excluded.first_name, excluded.last_name, excluded.image_url,
                 excluded.email, excluded.email_verified, excluded.banned, excluded.locked, excluded.public_metadata,
                 excluded.created_at, excluded.updated_at, excluded.last_event_at, excluded.last_event_id)
          WHERE u.deleted_at IS NULL
            AND (u.last_event_at IS NULL OR (u.updated_at, u.last_event_at, u.last_event_id)
                                         <= (excluded.updated_at, excluded.last_event_at, excluded.last_event_id));
        IF NOT FOUND THEN
            RETURN 'stale';
        END IF;
        -- A ban ends the keys. A lock does not: otherwise a client that guesses passwords could end other users' keys.
        IF (body->>'banned')::boolean THEN
            UPDATE public.users AS u SET keys_ended_at = clock_timestamp() WHERE u.id = me;
            PERFORM public.gatepost_keys_changed(me, NULL);
            INSERT INTO public.endings (kind, subject) VALUES ('ban', me);
        END IF;
    WHEN 'user.deleted' THEN
        PERFORM public.gatepost_revoke('user', me, NULL, until);
        INSERT INTO public.users AS u (id, deleted_at) VALUES (me, moment)
        ON CONFLICT (id) DO UPDATE
            SET (external_id, username, first_name, last_name, image_url, email, email_verified, banned, locked,
                 public_metadata, created_at, updated_at, deleted_at, last_event_at, last_event_id) =
                (NULL, NULL, NULL, NULL, NULL, NULL, false, false, false, '{}', NULL, NULL, excluded.deleted_at, NULL, NULL)
          WHERE u.deleted_at IS NULL;
        IF NOT FOUND THEN
            RETURN 'stale';
        END IF;
        PERFORM public.gatepost_keys_changed(me, NULL);
        INSERT INTO public.endings (kind, subject) VALUES ('user', me);
        PERFORM public.gatepost_end_memberships('user', me, 100);           -- lists show it at once; the rest is swept
    WHEN 'organization.created', 'organization.updated' THEN
        INSERT INTO public.organizations AS o (id, name, slug, image_url, public_metadata, created_by, created_at, updated_at,
                                               last_event_at, last_event_id)
        VALUES (me, body->>'name', body->>'slug', body->>'image_url', body->'public_metadata', body->>'created_by',
                (body->>'created_at')::timestamptz, (body->>'updated_at')::timestamptz, at, msg)
        ON CONFLICT (id) DO UPDATE
            SET (name, slug, image_url, public_metadata, created_by, created_at, updated_at, last_event_at, last_event_id) =
                (excluded.name, excluded.slug, excluded.image_url, excluded.public_metadata, excluded.created_by,
                 excluded.created_at, excluded.updated_at, excluded.last_event_at, excluded.last_event_id)
          WHERE o.deleted_at IS NULL AND (o.updated_at, o.last_event_at, o.last_event_id)
                                      <= (excluded.updated_at, excluded.last_event_at, excluded.last_event_id);
        IF NOT FOUND THEN
            RETURN 'stale';
        END IF;
    WHEN 'organization.deleted' THEN
        PERFORM public.gatepost_revoke('organization', me, NULL, until);
        INSERT INTO public.organizations AS o (id, deleted_at) VALUES (me, moment)
        ON CONFLICT (id) DO UPDATE
            SET (name, slug, image_url, public_metadata, created_by, created_at, updated_at, deleted_at, last_event_at,
                 last_event_id) = (NULL, NULL, NULL, '{}', NULL, NULL, NULL, excluded.deleted_at, NULL, NULL)
          WHERE o.deleted_at IS NULL;
        IF NOT FOUND THEN
            RETURN 'stale';
        END IF;
        PERFORM public.gatepost_keys_changed(NULL, me);
        INSERT INTO public.endings (kind, subject) VALUES ('organization', me);
        PERFORM public.gatepost_end_memberships('organization', me, 100);
    WHEN 'organizationMembership.created', 'organizationMembership.updated', 'organizationMembership.deleted' THEN
        RETURN public.gatepost_apply_membership(msg, what, at, body, until);
    WHEN 'session.ended', 'session.removed', 'session.revoked' THEN
        PERFORM public.gatepost_revoke('session', me, NULL, until, body->>'user_id');
    WHEN 'role.updated', 'role.deleted' THEN
        PERFORM public.gatepost_revoke('role', me, moment, until);
    ELSE
        RETURN 'stored';
    END CASE;
    RETURN 'applied';
END $$;
REVOKE ALL ON FUNCTION public.gatepost_revoke(text, text, timestamptz, timestamptz, text, integer),
    public.gatepost_keys_changed(text, text), public.gatepost_end_memberships(text, text, integer),
    public.gatepost_apply_membership(text, text, timestamptz, jsonb, timestamptz),
    public.gatepost_apply(text, text, timestamptz, jsonb, timestamptz) FROM PUBLIC;

-- Accept one event: record it in the inbox and apply it, all or nothing. Returns what gatepost_apply returns, or 'repeated' if
-- this event is already there. Events are applied one at a time: they are few, and so their order is never in question.
CREATE OR REPLACE FUNCTION public.apply_clerk_event(event_id text, event_type text, event_at timestamptz, event jsonb,
                                                    keep_for interval, revoke_for interval)
RETURNS text LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(4716, 2);
    -- Never forgotten while its signature is still valid, whatever the caller passes.
    INSERT INTO public.webhook_inbox (id, provider, type, event_at, payload, expires_at)
    VALUES (event_id, 'clerk', event_type, event_at, event, now() + greatest(keep_for, interval '1 hour'))
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN 'repeated';
    END IF;
    RETURN public.gatepost_apply(event_id, event_type, event_at, event, now() + revoke_for);
END $$;

-- Apply stored events again, the next `at_most` after a position in their order; one that fails leaves nothing and is reported.
CREATE OR REPLACE FUNCTION public.replay_clerk_events(after_at timestamptz, after_id text, at_most integer, revoke_for interval)
RETURNS TABLE (event_at timestamptz, event_id text, outcome text)
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    kept public.webhook_inbox;
BEGIN
    PERFORM pg_advisory_xact_lock(4716, 2);
    FOR kept IN SELECT i.* FROM public.webhook_inbox AS i
                 WHERE i.provider = 'clerk' AND (i.event_at, i.id) > (after_at, after_id) AND i.expires_at > now()
                 ORDER BY i.event_at, i.id LIMIT at_most LOOP
        event_at := kept.event_at;
        event_id := kept.id;
        BEGIN
            outcome := public.gatepost_apply(kept.id, kept.type, kept.event_at, kept.payload, kept.received_at + revoke_for);
        EXCEPTION WHEN OTHERS THEN
            outcome := 'failed';
        END;
        RETURN NEXT;
    END LOOP;
END $$;

-- Accept one logout token or security event of an issuer: record it in the inbox and end what it names, all or nothing. Returns
-- 'applied', or 'repeated' if it is already there. `ends` is an array of objects: `kind` and `subject` of a revocation, its
-- `owner`, `at` (RFC 3339: credentials issued by then; null: all of them), and `keys` (whether the user's API keys end too). One of
-- the kind `enabled` ends nothing: the user's account is no longer disabled since `at`. The issuer and all ids are checked and in
-- the issuer's namespace already. Events of one subject combine in any order, so they need not be applied one at a time.
CREATE OR REPLACE FUNCTION public.apply_sign_out(event_id text, event_type text, event_at timestamptz, from_issuer text, ends jsonb,
                                                 keep_for interval, revoke_for interval)
RETURNS text LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    one    jsonb;
    moment timestamptz;
BEGIN
    INSERT INTO public.webhook_inbox (id, provider, type, event_at, payload, expires_at)
    VALUES (event_id, 'oidc', event_type, event_at, jsonb_build_object('issuer', from_issuer, 'ends', ends),
            now() + greatest(keep_for, interval '1 hour'))
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN 'repeated';
    END IF;
    PERFORM set_config('gatepost.actor', 'issuer:' || from_issuer, true);          -- for the audit log: no caller did this
    FOR one IN SELECT e FROM jsonb_array_elements(ends) AS e ORDER BY e->>'kind', e->>'subject' LOOP
        moment := coalesce((one->>'at')::timestamptz, clock_timestamp());
        IF one->>'kind' = 'enabled' THEN
            INSERT INTO public.users AS u (id, enabled_at) VALUES (one->>'subject', moment)
            ON CONFLICT (id) DO UPDATE SET enabled_at = greatest(u.enabled_at, excluded.enabled_at);
            IF EXISTS (SELECT FROM public.users AS u WHERE u.id = one->>'subject' AND u.disabled_at IS NOT NULL) THEN
                PERFORM public.gatepost_keys_changed(one->>'subject', NULL);
            END IF;
            CONTINUE;
        END IF;
        PERFORM public.gatepost_revoke(one->>'kind', one->>'subject', (one->>'at')::timestamptz, now() + revoke_for, one->>'owner');
        IF (one->>'keys')::boolean THEN                                               -- a late repeat ends no newer key
            INSERT INTO public.users AS u (id, keys_ended_at, disabled_at) VALUES (one->>'subject', moment, moment)
            ON CONFLICT (id) DO UPDATE SET keys_ended_at = greatest(u.keys_ended_at, excluded.keys_ended_at),
                                           disabled_at = greatest(u.disabled_at, excluded.disabled_at);
            PERFORM public.gatepost_keys_changed(one->>'subject', NULL);
            INSERT INTO public.endings (kind, subject, ended_at) VALUES ('ban', one->>'subject', moment);
        END IF;
    END LOOP;
    RETURN 'applied';
END $$;

-- The next `at_most` revocations that were written in the transaction `since` or a later one ('0': all of them), in the order of
-- (changed_in, kind, subject) and behind this kind and subject of that transaction ('' and '': from its first one on). The last
-- row says where the next page begins. Expired rows are among them, so that a page reads at most `at_most` rows of the table.
-- A row that is written between two pages moves behind all pages; its transaction is not below the xmin of the first page's
-- snapshot, so a reader that goes on from there finds it.
CREATE OR REPLACE FUNCTION public.revocations_page(since xid8, after_kind text, after_subject text, at_most integer)
RETURNS TABLE (changed_in xid8, kind text, subject text, issued_before timestamptz, expires_at timestamptz)
LANGUAGE sql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
    SELECT r.changed_in, r.kind, r.subject, r.issued_before, r.expires_at FROM public.revocations AS r
     WHERE (r.changed_in, r.kind COLLATE "C", r.subject COLLATE "C") > (since, after_kind, after_subject)
     ORDER BY r.changed_in, r.kind COLLATE "C", r.subject COLLATE "C" LIMIT at_most
$$;

-- The same at once, without those that have expired: for servers of the previous release.
DROP FUNCTION IF EXISTS public.live_revocations();
CREATE OR REPLACE FUNCTION public.revocations_since(earliest xid8)
RETURNS TABLE (kind text, subject text, issued_before timestamptz, expires_at timestamptz)
LANGUAGE sql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
    SELECT r.kind, r.subject, r.issued_before, r.expires_at FROM public.revocations AS r
     WHERE r.changed_in >= earliest AND r.expires_at > now()
$$;

-- Tidy up after the oldest end that no other session is processing, at most `at_most` rows of it. Returns the number of ends that
-- are left. Access does not wait for this. After an interruption the next call continues with the remaining rows.
CREATE OR REPLACE FUNCTION public.sweep_ended(at_most integer) RETURNS bigint
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on SET lock_timeout = '1s' AS $$
DECLARE
    next  public.endings;
    these text[] := '{}';
    done  boolean := true;
BEGIN
    SELECT * INTO next FROM public.endings AS e ORDER BY e.id LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        PERFORM set_config('gatepost.actor', 'system', true), set_config('gatepost.request_id', '', true);
        CASE next.kind                              -- each in a statement of its own, so that an index answers it
        WHEN 'key' THEN
            these := ARRAY(SELECT k.id FROM public.api_keys AS k
                            WHERE k.revoked_at IS NULL AND k.depends_on @> ARRAY[next.subject] LIMIT at_most);
        WHEN 'organization' THEN
            these := ARRAY(SELECT k.id FROM public.api_keys AS k
                            WHERE k.revoked_at IS NULL AND k.org_id = next.subject LIMIT at_most);
            done := public.gatepost_end_memberships(next.kind, next.subject, at_most);
        WHEN 'user' THEN
            these := ARRAY(SELECT k.id FROM public.api_keys AS k
                            WHERE k.revoked_at IS NULL AND k.user_id = next.subject LIMIT at_most);
            done := public.gatepost_end_memberships(next.kind, next.subject, at_most);
        ELSE                                        -- a ban, or one membership
            these := ARRAY(SELECT k.id FROM public.api_keys AS k
                            WHERE k.revoked_at IS NULL AND k.user_id = next.subject AND k.created_at <= next.ended_at
                              AND (next.org_id IS NULL OR k.org_id = next.org_id) LIMIT at_most);
        END CASE;
        UPDATE public.api_keys AS k SET revoked_at = now() WHERE k.id = ANY (these) AND k.revoked_at IS NULL;
        IF done AND cardinality(these) < at_most THEN
            DELETE FROM public.endings AS e WHERE e.id = next.id;
        END IF;
    END IF;
    RETURN (SELECT count(*) FROM public.endings);
END $$;

-- Delete events and revocations that have expired, at most 1000 of each (BATCH_ROWS of server/auth/cleanup.py); returns the number
-- of rows. One call runs at a time; a second one does nothing.
CREATE OR REPLACE FUNCTION public.prune_sync() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on SET lock_timeout = '1s' AS $$
DECLARE
    events  bigint;
    expired bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(4716, 4) THEN
        RETURN 0;
    END IF;
    DELETE FROM public.webhook_inbox AS i
     WHERE i.id = ANY (ARRAY(SELECT o.id FROM public.webhook_inbox AS o WHERE o.expires_at <= now() ORDER BY o.expires_at LIMIT 1000))
       AND i.expires_at <= now();
    GET DIAGNOSTICS events = ROW_COUNT;
    DELETE FROM public.revocations AS r
     USING (SELECT o.kind, o.subject FROM public.revocations AS o WHERE o.expires_at <= now() ORDER BY o.expires_at LIMIT 1000) AS old
     WHERE r.kind = old.kind AND r.subject = old.subject AND r.expires_at <= now();
    GET DIAGNOSTICS expired = ROW_COUNT;
    RETURN events + expired;
END $$;

-- Delete at most `at_most` expired responses; returns their number. Locked rows are skipped.
CREATE OR REPLACE FUNCTION public.prune_idempotency(at_most integer) RETURNS bigint
LANGUAGE sql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on SET lock_timeout = '1s' AS $$
    WITH expired AS (SELECT i.hash FROM public.idempotency_keys AS i WHERE i.expires_at <= now()
                      ORDER BY i.expires_at LIMIT at_most FOR UPDATE SKIP LOCKED),
         gone AS (DELETE FROM public.idempotency_keys AS i USING expired WHERE i.hash = expired.hash RETURNING 1)
    SELECT count(*) FROM gone
$$;

REVOKE ALL ON FUNCTION public.apply_sign_out(text, text, timestamptz, text, jsonb, interval, interval),
    public.apply_clerk_event(text, text, timestamptz, jsonb, interval, interval),
    public.replay_clerk_events(timestamptz, text, integer, interval), public.revocations_since(xid8),
    public.revocations_page(xid8, text, text, integer), public.sweep_ended(integer), public.prune_sync(),
    public.prune_idempotency(integer) FROM PUBLIC;
DO $do$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION public.apply_sign_out(text, text, timestamptz, text, jsonb, interval, interval),
                    public.apply_clerk_event(text, text, timestamptz, jsonb, interval, interval),
                    public.replay_clerk_events(timestamptz, text, integer, interval), public.revocations_since(xid8),
                    public.revocations_page(xid8, text, text, integer), public.sweep_ended(integer), public.prune_sync(), public.prune_idempotency(integer) TO %I', current_setting('gatepost.serving_role'));
END $do$;

-- End a session, a user's tokens or one token (`jti`) for the operator, as an issuer's events do; returns when. Of a user's
-- tokens only those issued until then end. The audit log names the operator.
CREATE OR REPLACE FUNCTION public.revoke_access(of_kind text, whom text, keep_for interval) RETURNS timestamptz
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    moment CONSTANT timestamptz := clock_timestamp();
BEGIN
    IF of_kind NOT IN ('session', 'user', 'jti') THEN
        RAISE EXCEPTION 'only a session, a user or a token can be revoked' USING ERRCODE = 'check_violation';
    END IF;
    PERFORM set_config('gatepost.actor', 'operator', true), set_config('gatepost.request_id', '', true);
    PERFORM public.gatepost_revoke(of_kind, whom, CASE of_kind WHEN 'user' THEN moment END, moment + keep_for);
    RETURN moment;
END $$;
REVOKE ALL ON FUNCTION public.revoke_access(text, text, interval) FROM PUBLIC;
DO $do$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION public.revoke_access(text, text, interval) TO %I',
                   current_setting('gatepost.serving_role'));
END $do$;

-- A change to a key is reported to every worker in the same transaction, by one row for all keys of its owner: they are looked up
-- again before they are accepted. The keys that a revoked key has created end with it, because they depend on it. Both functions
-- need the rights of gatepost_sync (no other role may write revocations); no role can call them: a trigger needs no such right.
CREATE OR REPLACE FUNCTION public.gatepost_key_told() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
BEGIN
    IF (NEW.hash, NEW.previous_expires_at, NEW.revoked_at) IS DISTINCT FROM (OLD.hash, OLD.previous_expires_at, OLD.revoked_at)
    THEN
        PERFORM public.gatepost_keys_changed(NEW.user_id, NEW.org_id);
    END IF;
    IF NEW.revoked_at IS NOT NULL AND OLD.revoked_at IS NULL THEN
        INSERT INTO public.endings (kind, subject) VALUES ('key', NEW.id);
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION public.gatepost_membership_told() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
BEGIN
    -- For a deleted organisation, its own row has the same effect.
    IF NOT EXISTS (SELECT FROM public.organizations AS o WHERE o.id = NEW.organization_id AND o.deleted_at IS NOT NULL) THEN
        PERFORM public.gatepost_revoke('keys', 'user:' || NEW.user_id, clock_timestamp(),
                                       clock_timestamp() + interval '10 minutes', NEW.organization_id, 500);
    END IF;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION public.gatepost_key_told(), public.gatepost_membership_told() FROM PUBLIC;
-- The role that creates a trigger must be able to execute its function, for that moment.
DO $do$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION public.gatepost_key_told(), public.gatepost_membership_told() TO %I',
                   current_setting('gatepost.owner'));
END $do$;
SELECT set_config('role', current_setting('gatepost.owner'), true);
CREATE OR REPLACE TRIGGER told AFTER UPDATE OF hash, previous_expires_at, revoked_at ON api_keys
    FOR EACH ROW EXECUTE FUNCTION public.gatepost_key_told();
CREATE OR REPLACE TRIGGER told AFTER INSERT OR UPDATE ON memberships
    FOR EACH ROW EXECUTE FUNCTION public.gatepost_membership_told();
SET LOCAL ROLE gatepost_sync;
DO $do$
BEGIN
    EXECUTE format('REVOKE EXECUTE ON FUNCTION public.gatepost_key_told(), public.gatepost_membership_told() FROM %I',
                   current_setting('gatepost.owner'));
END $do$;

-- What is recorded about writes and denials -----------------------------------------------------------------------------------
SET LOCAL ROLE gatepost_audit;

-- One entry for each row that is written, in the same transaction: TG_ARGV names the column of the organisation ('' for none)
-- and that of the row's id; a third one says that the table is partitioned, so that its name is looked up. The entry has names
-- of columns, and no values but those two. The settings that name the caller count within a request only: a command sets the
-- scope of the owner whose rows it works on, and is not that user. If no
-- actor is set, the actor is `anonymous` in a request; outside of one it is `system` for the serving role, and `operator` for
-- any other role. The impersonator is in the same setting as the actor, which every transaction of a request sets, so that no
-- request pays for one more setting, and none can inherit what an earlier user of its connection left there.
CREATE OR REPLACE FUNCTION public.gatepost_audited() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    request text := NULLIF(current_setting('gatepost.request_id', true), '');
    said    text := current_setting('gatepost.actor', true);
    who     text := NULLIF(split_part(said, E'\n', 1), '');
    behind  text := NULLIF(split_part(said, E'\n', 2), '');
    after   jsonb;
    before  jsonb;
    columns text[];
    name    text;
BEGIN
    IF TG_OP = 'INSERT' THEN
        after := to_jsonb(NEW);
    ELSIF TG_OP = 'DELETE' THEN
        before := to_jsonb(OLD);
    ELSE
        before := to_jsonb(OLD);
        after := to_jsonb(NEW);
        columns := ARRAY(SELECT a.key FROM jsonb_each(after) AS a WHERE a.value IS DISTINCT FROM before->a.key ORDER BY a.key);
    END IF;
    IF who IS NULL THEN
        who := CASE WHEN request IS NOT NULL THEN 'anonymous'
                    WHEN EXISTS (SELECT FROM pg_policy AS p JOIN pg_roles AS r ON r.oid = ANY (p.polroles)
                                  WHERE p.polrelid = 'public.audit_log'::regclass AND p.polname = 'admin_select'
                                    AND r.rolname = session_user) THEN 'system'
                    ELSE 'operator' END;
    END IF;
    -- Not in the INSERT: with a subquery in it, Postgres would plan it again for every row.
    IF TG_NARGS > 2 THEN
        SELECT CASE WHEN n.nspname = 'public' THEN '' ELSE n.nspname || '.' END || c.relname INTO name
          FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.oid = coalesce(pg_partition_root(TG_RELID), TG_RELID);
    ELSIF TG_TABLE_SCHEMA <> 'public' THEN
        name := TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME;
    END IF;
    INSERT INTO public.audit_log (org_id, user_id, actor, impersonator, action, target, row_id, changed, request_id)
    VALUES (NULLIF(coalesce(after->>TG_ARGV[0], before->>TG_ARGV[0]), ''),
            CASE WHEN request IS NOT NULL THEN NULLIF(current_setting('gatepost.user_id', true), '') END, who, behind, lower(TG_OP),
            coalesce(name, TG_TABLE_NAME),
            coalesce(after, before)->>TG_ARGV[1], columns, request);
    RETURN NULL;
END $$;

-- Record what the gate denied to known callers, one entry for each position of the arrays; returns their number. A time is
-- stored as it is passed, but never one in the future or more than a day ago.
DROP FUNCTION IF EXISTS public.audit_denied(timestamptz[], text[], text[], text[], text[], text[], text[], integer[], text[]);
CREATE OR REPLACE FUNCTION public.audit_denied(moments timestamptz[], orgs text[], users text[], actors text[], impersonators text[],
                                               providers text[], targets text[], reasons text[], counts integer[], requests text[])
RETURNS bigint LANGUAGE sql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
    WITH noted AS (
        INSERT INTO public.audit_log (created_at, org_id, user_id, actor, impersonator, provider, action, target, reason, times,
                                      request_id)
        SELECT greatest(least(d.moment, now()), now() - interval '1 day'), d.org, d.who, d.actor, d.behind, d.provider, 'denied',
               d.target, d.reason, d.number, d.request
          FROM unnest(moments, orgs, users, actors, impersonators, providers, targets, reasons, counts, requests)
            AS d (moment, org, who, actor, behind, provider, target, reason, number, request)
        RETURNING 1)
    SELECT count(*) FROM noted
$$;

-- Delete entries older than `days` among the oldest `at_most`; returns their number. The last seven days always stay: an
-- intruder who runs SQL as the serving role cannot erase the traces. One call runs at a time; a second one does nothing.
CREATE OR REPLACE FUNCTION public.audit_prune(days integer, at_most integer) RETURNS bigint
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    gone bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(4716, 3) THEN
        RETURN 0;
    END IF;
    WITH oldest AS (SELECT l.id, l.created_at FROM public.audit_log AS l ORDER BY l.id LIMIT at_most)
    DELETE FROM public.audit_log AS l USING oldest
     WHERE l.id = oldest.id AND oldest.created_at < now() - make_interval(days => greatest(days, 7));
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$;
REVOKE ALL ON FUNCTION public.gatepost_audited(), public.audit_prune(integer, integer), public.audit_denied(timestamptz[],
    text[], text[], text[], text[], text[], text[], text[], integer[], text[]) FROM PUBLIC;
-- The owner creates triggers with the first function, also for later tables. That opens nothing: the owner owns the log's
-- table.
DO $do$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION public.gatepost_audited() TO %I',
                   (SELECT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename = 'audit_log'));
    EXECUTE format('GRANT EXECUTE ON FUNCTION public.audit_prune(integer, integer), public.audit_denied(timestamptz[],
                    text[], text[], text[], text[], text[], text[], text[], integer[], text[]) TO %I',
                   current_setting('gatepost.serving_role'));
END $do$;

-- Back to the owner; the memberships are revoked again.
SELECT set_config('role', current_setting('gatepost.owner'), true);
REVOKE CREATE ON SCHEMA public FROM gatepost_auth, gatepost_sync, gatepost_audit;
DO $do$
DECLARE
    super boolean := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
BEGIN
    IF NOT super THEN
        EXECUTE format('REVOKE gatepost_auth, gatepost_sync, gatepost_audit FROM %I', current_user);
        IF pg_has_role('gatepost_auth', 'USAGE') OR pg_has_role('gatepost_sync', 'USAGE')
           OR pg_has_role('gatepost_audit', 'USAGE') THEN
            RAISE EXCEPTION '% inherits one of gatepost_auth, gatepost_sync and gatepost_audit by a grant that is not its own: '
                            'revoke it', current_user;
        END IF;
    END IF;
END $do$;


-- Which tables are audited ------------------------------------------------------------------------------------------------------
-- For a table of your own, in a file for `migrate --schema`:  SELECT gatepost_audit('my_table', 'organization_id');
-- Run it as the owner; it can be run again. The entry goes to the log of the row's organisation; without such a
-- column (NULL) only the operator sees it. An update that names ignored columns only leaves no entry.
CREATE OR REPLACE FUNCTION public.gatepost_audit(of_table regclass, org_column text DEFAULT NULL, id_column text DEFAULT 'id',
                                                 ignored text[] DEFAULT '{}')
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    there text[] := ARRAY(SELECT attname FROM pg_attribute WHERE attrelid = of_table AND attnum > 0 AND NOT attisdropped
                           ORDER BY attnum);
    asked text;
BEGIN
    IF of_table = 'public.audit_log'::regclass THEN
        RAISE EXCEPTION 'the audit log cannot note its own writes';
    END IF;
    FOREACH asked IN ARRAY array_remove(ignored || id_column || org_column, NULL) LOOP
        IF NOT asked = ANY (there) THEN
            RAISE EXCEPTION 'the table % has no column %', of_table, asked;
        END IF;
    END LOOP;
    EXECUTE format('CREATE OR REPLACE TRIGGER audited AFTER INSERT OR DELETE OR UPDATE %s ON %s'
                   ' FOR EACH ROW EXECUTE FUNCTION public.gatepost_audited(%L, %L%s)',
                   (SELECT 'OF ' || string_agg(format('%I', t.name), ', ') FROM unnest(there) AS t (name)
                     WHERE ignored <> '{}' AND NOT t.name = ANY (ignored)),
                   of_table, coalesce(org_column, ''), coalesce(id_column, ''),
                   (SELECT ', ''partitioned''' FROM pg_class WHERE oid = of_table AND relkind = 'p'));
END $$;
REVOKE ALL ON FUNCTION public.gatepost_audit(regclass, text, text, text[]) FROM PUBLIC;
SELECT gatepost_audit('data', 'org_id'), gatepost_audit('org_data', 'organization_id'),
       gatepost_audit('invoices', 'organization_id'), gatepost_audit('api_keys', 'org_id', ignored => '{last_used_at}');

-- Only revocations by the operator and by an issuer's logout tokens and security events are audited here: what Clerk or a change of
-- a key ends is recorded elsewhere. The row's id is that of the session, the user or the token; only the operator sees the entry.
CREATE OR REPLACE TRIGGER audited AFTER INSERT OR UPDATE ON revocations FOR EACH ROW
    WHEN (NEW.kind IN ('session', 'user', 'subject', 'jti')
          AND (current_setting('gatepost.actor', true) = 'operator' OR current_setting('gatepost.actor', true) LIKE 'issuer:%'))
    EXECUTE FUNCTION public.gatepost_audited('', 'subject');


-- Tables of a product -----------------------------------------------------------------------------------------------------------
-- For a file for `migrate --schema`. Run as the owner; docs/guides/tables.md explains what is written, line by line.

-- Tables whose policies may show rows to no caller in particular. The server reads it, at startup and in `check`; only the
-- owner declares, by gatepost_public_rows.
CREATE TABLE IF NOT EXISTS gatepost_public (
    relation    regclass    PRIMARY KEY,
    reason      text        NOT NULL CHECK (reason ~ '\S' AND char_length(reason) <= 300 AND reason !~ '[[:cntrl:]]'),
    declared_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
DELETE FROM gatepost_public AS p WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = p.relation);
DO $do$
BEGIN
    EXECUTE format('REVOKE ALL ON gatepost_public FROM PUBLIC, gatepost_auth, gatepost_sync, gatepost_audit, %1$I;'
                   'GRANT SELECT ON gatepost_public TO %1$I', current_setting('gatepost.serving_role'));
END $do$;

-- The serving role: the one that this session names (`migrate` does), or else the one that the last migration served.
CREATE OR REPLACE FUNCTION public.gatepost_serving_role() RETURNS name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(NULLIF(current_setting('gatepost.serving_role', true), '')::name,
                    (SELECT r.rolname FROM pg_policy AS p JOIN pg_roles AS r ON r.oid = ANY (p.polroles)
                      WHERE p.polrelid = 'public.audit_log'::regclass AND p.polname = 'admin_select'))
$$;

-- Raises unless this is a table of the product's own that policies can protect, and whose owner runs this.
CREATE OR REPLACE FUNCTION public.gatepost_must_be_own(of_table regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    app   oid := (SELECT oid FROM pg_roles WHERE rolname = public.gatepost_serving_role());
    found pg_class;
    fault text;
BEGIN
    IF app IS NULL THEN
        RAISE EXCEPTION 'there is no serving role: run `python -m server migrate` first';
    END IF;
    SELECT * INTO found FROM pg_class AS c WHERE c.oid = of_table;
    fault := CASE
        WHEN found.oid IS NULL THEN 'is not in this database'
        WHEN found.relpersistence = 't' THEN 'is temporary'
        WHEN found.relnamespace = ANY (ARRAY['pg_catalog', 'information_schema']::regnamespace[]) THEN 'belongs to Postgres'
        WHEN found.relnamespace = 'public'::regnamespace
             AND (found.relname ~ '^gatepost_' OR found.relname IN (SELECT o.name FROM public.gatepost_own_tables() AS o))
            THEN 'is Gatepost''s own'
        WHEN found.relkind = 'f' THEN 'is a foreign table: no policy protects rows of another server'
        WHEN found.relkind NOT IN ('r', 'p') THEN 'is not a table'
        WHEN found.relispartition THEN format('is a partition: name %s instead', pg_partition_root(of_table))
        WHEN EXISTS (SELECT FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
                      WHERE NOT c.relispartition AND of_table IN (i.inhrelid, i.inhparent))
            THEN 'inherits, or is inherited from: policies and triggers do not follow inheritance'
        WHEN EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = of_table AND d.deptype = 'e')
            THEN 'belongs to an extension'
        WHEN EXISTS (SELECT FROM pg_partition_tree(of_table) AS t JOIN pg_class AS c ON c.oid = t.relid WHERE c.relkind = 'f')
            THEN 'has a foreign table as a partition: no policy protects rows of another server'
        WHEN app IN (SELECT c.relowner FROM pg_class AS c WHERE c.oid = of_table
                     UNION ALL SELECT c.relowner FROM pg_partition_tree(of_table) AS t JOIN pg_class AS c ON c.oid = t.relid)
            THEN 'belongs to the serving role, which could switch row-level security off: change its owner'
        WHEN NOT pg_has_role(found.relowner, 'USAGE')
            THEN format('belongs to %I: run this as that role', pg_get_userbyid(found.relowner))
    END;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'the table % %', of_table, fault USING ERRCODE = 'wrong_object_type';
    END IF;
END $$;

-- Declare that policies of this table may show rows to no caller in particular, for SELECT alone, and why; NULL takes that
-- back. It writes no policy. `check` and startup accept such policies for declared tables only.
CREATE OR REPLACE FUNCTION public.gatepost_public_rows(of_table regclass, why text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM public.gatepost_public AS p
     WHERE p.relation = of_table OR NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = p.relation);
    IF why IS NULL THEN
        RETURN;
    END IF;
    PERFORM public.gatepost_must_be_own(of_table);
    IF why !~ '\S' OR char_length(why) > 300 OR why ~ '[[:cntrl:]]' THEN
        RAISE EXCEPTION 'say why rows of % are public, in one line of at most 300 characters', of_table
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO public.gatepost_public (relation, reason) VALUES (of_table, btrim(why));
END $$;

-- Returns the first fault of the columns that hold a row's tenants or author; NULL if there is none.
CREATE OR REPLACE FUNCTION public.gatepost_tenant_column_fault(of_table regclass, asked text[]) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one   text;
    found record;
    fault text;
BEGIN
    FOREACH one IN ARRAY array_remove(asked, NULL) LOOP
        SELECT a.atttypid, a.attgenerated, co.collisdeterministic INTO found
          FROM pg_attribute AS a LEFT JOIN pg_collation AS co ON co.oid = a.attcollation
         WHERE a.attrelid = of_table AND a.attname = one AND a.attnum > 0 AND NOT a.attisdropped;
        fault := coalesce(fault, CASE
            WHEN found.atttypid IS NULL THEN format('it has no column %I', one)
            WHEN found.atttypid <> 'text'::regtype
                THEN format('its column %I is %s: ids of users and organisations are text', one, format_type(found.atttypid, NULL))
            WHEN found.attgenerated <> '' THEN format('its column %I is generated', one)
            WHEN NOT found.collisdeterministic
                THEN format('the collation of its column %I takes different ids for the same', one)
        END);
    END LOOP;
    RETURN fault;
END $$;

-- Raises where gatepost_tenant would not know what it does: columns, policies and triggers that do not fit.
CREATE OR REPLACE FUNCTION public.gatepost_tenant_fits(of_table regclass, organization name, author name, "user" name,
                                                       admin_deletes boolean, written name[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    app   oid := (SELECT oid FROM pg_roles WHERE rolname = public.gatepost_serving_role());
    found record;
    fault text := CASE
        WHEN organization IS NULL AND "user" IS NULL
            THEN 'name the column of its tenant, as in organization => ''organization_id'' or "user" => ''user_id'''
        WHEN author IS NOT NULL AND "user" IS NOT NULL THEN 'a row of a user has no other author: leave author out'
        WHEN admin_deletes AND organization IS NULL
            THEN 'admin_deletes needs the column of the organisation whose administrators may delete'
        WHEN organization IN ("user", author) THEN format('%I cannot be two of organization, author and user', organization)
    END;
BEGIN
    fault := coalesce(fault, public.gatepost_tenant_column_fault(of_table, ARRAY[organization, author, "user"]));
    FOR found IN SELECT a.attname, a.atttypid, a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL AS lacking
                   FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
                  WHERE a.attrelid = of_table AND a.attnum > 0 AND NOT a.attisdropped
                    AND a.attname IN ('id', 'created_at', 'updated_at')
                    AND a.attname <> ALL (array_remove(ARRAY[organization, author, "user"], NULL)) LOOP
        fault := coalesce(fault, CASE
            WHEN found.lacking THEN format('its column %I is set by the database and never by a caller: it needs a DEFAULT', found.attname)
            WHEN found.attname = 'updated_at' AND found.atttypid <> 'timestamptz'::regtype
                THEN 'its column updated_at is not a timestamptz'
        END);
    END LOOP;
    FOR found IN SELECT p.polname FROM pg_policy AS p
                  WHERE p.polrelid = of_table AND NOT p.polpermissive AND p.polname = ANY (written) LOOP
        fault := coalesce(fault, format('it has a restrictive policy with the name of one of its own, %I: rename it', found.polname));
    END LOOP;
    FOR found IN SELECT p.polname, p.polcmd FROM pg_policy AS p
                  WHERE p.polrelid = of_table AND p.polpermissive AND p.polname <> ALL (written) AND p.polroles && ARRAY[0::oid, app]
                    AND NOT (p.polcmd = 'r' AND EXISTS (SELECT FROM public.gatepost_public AS d WHERE d.relation = of_table))
                  ORDER BY p.polname LOOP
        fault := coalesce(fault, format('it has the policy %I, which this function did not write: drop it%s', found.polname,
                                        CASE WHEN found.polcmd = 'r' THEN ', declare public rows by gatepost_public_rows' ELSE '' END)
                                 || ', or drop it before this call and create it again after it');
    END LOOP;
    FOR found IN SELECT t.tgname FROM pg_trigger AS t
                  WHERE t.tgrelid = of_table
                    AND (t.tgname, t.tgfoid) NOT IN (('touch'::name, 'public.gatepost_touch()'::regprocedure::oid),
                                                     ('audited'::name, 'public.gatepost_audited()'::regprocedure::oid))
                    AND t.tgname IN ('touch', 'audited') LOOP
        fault := coalesce(fault, format('it has a trigger %I of another origin: rename it', found.tgname));
    END LOOP;
    FOR found IN SELECT a.attname FROM pg_partition_tree(of_table) AS tree
                   JOIN pg_partitioned_table AS p ON p.partrelid = tree.relid
                   JOIN pg_attribute AS a ON a.attrelid = of_table AND a.attname = ANY (ARRAY[organization, author, "user"])
                  WHERE pg_get_partkeydef(p.partrelid) ~ ('(^|\W)' || regexp_replace(quote_ident(a.attname), '(\W)', '\\\1', 'g') || '(\W|$)') LOOP
        fault := coalesce(fault, format('it is partitioned by %I, which its policies use: one-statement reads could come back empty',
                                        found.attname));
    END LOOP;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'gatepost_tenant(''%''): %', of_table, fault USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;

-- Make a table its tenants': row-level security, policies, column grants, index, updated_at, audit. What it wrote at an earlier
-- call is replaced. A table of organisations (`organization`, and `author` for the column of who created the row) has the
-- policies of org_data; one of users ("user") has those of data, with `organization` for an administrator's too.
CREATE OR REPLACE FUNCTION public.gatepost_tenant(of_table regclass, organization text DEFAULT NULL, author text DEFAULT NULL,
                                                  "user" text DEFAULT NULL, admin_deletes boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    app     name   := public.gatepost_serving_role();
    org     text   := coalesce(organization, '');                          -- '': there is none
    whose   text   := coalesce("user", '');
    tenants text[] := array_remove(ARRAY[organization, author, "user"], NULL);
    admins  boolean := coalesce(admin_deletes, false);
    user_id  CONSTANT text := 'NULLIF(current_setting(''gatepost.user_id'', true), '''')';
    org_id   CONSTANT text := 'NULLIF(current_setting(''gatepost.org_id'', true), '''')';
    admin_id CONSTANT text := 'NULLIF(current_setting(''gatepost.admin_org_id'', true), '''')';
    written  CONSTANT name[] := '{own_select,own_insert,own_update,own_delete,org_select,org_insert,org_update,org_delete,admin_select,admin_delete}';
    there      text[];
    insertable text;
    changeable text;
    each       record;
BEGIN
    PERFORM public.gatepost_must_be_own(of_table);
    PERFORM public.gatepost_tenant_fits(of_table, organization, author, "user", admins, written);

    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', of_table);
    FOR each IN SELECT p.polname FROM pg_policy AS p WHERE p.polrelid = of_table AND p.polname = ANY (written) LOOP
        EXECUTE format('DROP POLICY %I ON %s', each.polname, of_table);
    END LOOP;
    FOR each IN
        SELECT * FROM (VALUES
            (whose <> '', 'own_select', 'SELECT', format('USING (%I = (SELECT %s))', whose, user_id)),
            (whose <> '', 'own_insert', 'INSERT', format('WITH CHECK (%I = %s%s)', whose, user_id,
                CASE WHEN org <> '' THEN format(' AND (%1$I IS NULL OR %1$I = %2$s)', org, org_id) END)),
            (whose <> '', 'own_update', 'UPDATE', format('USING (%1$I = %2$s) WITH CHECK (%1$I = %2$s)', whose, user_id)),
            (whose <> '' AND NOT admins, 'own_delete', 'DELETE', format('USING (%I = %s)', whose, user_id)),
            (whose <> '' AND org <> '', 'admin_select', 'SELECT', format('USING (COALESCE(%I = %s, false))', org, admin_id)),
            (whose = '', 'org_select', 'SELECT', format('USING (%I = (SELECT %s))', org, org_id)),
            (whose = '', 'org_insert', 'INSERT', format('WITH CHECK (%I = %s%s)', org, org_id,
                CASE WHEN author IS NOT NULL THEN format(' AND %1$s = coalesce(%2$s, %1$s)', quote_ident(author), user_id) END)),
            (whose = '', 'org_update', 'UPDATE', format('USING (%1$I = %2$s) WITH CHECK (%1$I = %2$s)', org, org_id)),
            (whose = '' AND NOT admins, 'org_delete', 'DELETE', format('USING (%I = %s)', org, org_id)),
            (org <> '' AND (whose <> '' OR admins), 'admin_delete', 'DELETE', format('USING (%I = %s)', org, admin_id))
        ) AS policies (needed, policy, command, terms) WHERE needed LOOP
        EXECUTE format('CREATE POLICY %I ON %s FOR %s TO %I %s', each.policy, of_table, each.command, app, each.terms);
    END LOOP;

    -- Rights by column: ids, times, and what the database computes or counts are never written; tenants and authors are never
    -- changed, nor are columns that `check` takes for a tenant's by their name.
    there := ARRAY(SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = of_table AND a.attnum > 0 AND NOT a.attisdropped);
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum),
           string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FILTER (
               WHERE a.attname <> ALL (tenants) AND a.attname NOT IN ('user_id', 'org_id', 'organization_id'))
      INTO insertable, changeable
      FROM pg_attribute AS a
     WHERE a.attrelid = of_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity = ''
       AND (a.attname = ANY (tenants)
            OR (a.attname NOT IN ('id', 'created_at', 'updated_at')
                AND NOT EXISTS (SELECT FROM pg_depend AS d JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
                                 WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                                   AND d.refobjid = of_table AND d.refobjsubid = a.attnum)));
    EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, gatepost_auth, gatepost_sync, gatepost_audit, %I', of_table, app);
    EXECUTE format('GRANT SELECT, DELETE, INSERT (%s)%s ON %s TO %I', insertable, ', UPDATE (' || changeable || ')', of_table, app);
    FOR each IN SELECT DISTINCT s.oid::regclass AS name
                  FROM pg_attrdef AS f
                  JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
                  JOIN pg_class AS s ON s.oid = d.refobjid AND s.relkind = 'S'
                 WHERE f.adrelid = of_table LOOP
        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I', each.name, app);
    END LOOP;
    FOR each IN SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                 WHERE c.oid = of_table AND NOT has_schema_privilege(app, n.oid, 'USAGE') LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', each.nspname, app);
    END LOOP;
    -- Partitions are reached through their table only.
    FOR each IN SELECT t.relid AS part FROM pg_partition_tree(of_table) AS t WHERE t.relid <> of_table LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', each.part);
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, gatepost_auth, gatepost_sync, gatepost_audit, %I', each.part, app);
    END LOOP;

    IF 'updated_at' = ANY (there) THEN
        EXECUTE format('CREATE OR REPLACE TRIGGER touch BEFORE UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION public.gatepost_touch()', of_table);
    ELSIF EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = of_table AND t.tgname = 'touch') THEN
        EXECUTE format('DROP TRIGGER touch ON %s', of_table);
    END IF;
    PERFORM public.gatepost_audit(of_table, organization, CASE WHEN 'id' = ANY (there) THEN 'id' END);
    IF there @> '{id,created_at}' AND coalesce("user", organization) <> 'id' THEN
        PERFORM public.gatepost_page_index(of_table, coalesce("user", organization));
    END IF;
END $$;

-- An index for the pages of one tenant, newest first, unless there is one.
CREATE OR REPLACE FUNCTION public.gatepost_page_index(of_table regclass, tenant name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS m ON m.oid = c.relam
         WHERE i.indrelid = of_table AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts >= 3 AND m.amname = 'btree'
           AND (i.indoption[1], i.indoption[2]) IN ((0, 0), (3, 3))         -- both as they are, or both DESC
           AND ARRAY(SELECT a.attname FROM unnest(ARRAY[0, 1, 2]) AS n
                       JOIN pg_attribute AS a ON a.attrelid = of_table AND a.attnum = i.indkey[n] ORDER BY n)
               = ARRAY[tenant, 'created_at', 'id']) THEN
        EXECUTE format('CREATE INDEX ON %s (%I, created_at DESC, id DESC)', of_table, tenant);
    END IF;
END $$;

REVOKE ALL ON FUNCTION public.gatepost_serving_role(), public.gatepost_must_be_own(regclass), public.gatepost_public_rows(regclass, text),
    public.gatepost_tenant_column_fault(regclass, text[]), public.gatepost_tenant_fits(regclass, name, name, name, boolean, name[]), public.gatepost_page_index(regclass, name),
    public.gatepost_tenant(regclass, text, text, text, boolean) FROM PUBLIC;


-- Live changes ------------------------------------------------------------------------------------------------------------------
-- For a table of your own:  SELECT gatepost_changes('todos', organization => 'organization_id');  See docs/guides/streams.md.

-- Tell every server, after the commit, which rows of which tenant a statement has changed: their ids, and no other value. A message
-- is a JSON array on the channel gatepost_changes:
--   [table, "organization" or "user", its id, "u", [ids]]                  rows that were updated
--   [table, "organization" or "user", its id, "i" or "d", [ids], number]   rows that were inserted or deleted
--   [table, "organization" or "user", its id]                              too many rows of one tenant to report one by one
--   [table]                                                                the same, of every tenant
-- The arguments are the columns of the row's id, its organisation and its user ('': there is none). A row that moves to another
-- tenant, or whose id changes, is deleted where it was and inserted where it is now. At most 1000 rows of a transaction, with ids of
-- at most 1000 bytes, are reported one by one; Postgres sends equal messages of a transaction once, where the first of them was. A
-- row that was inserted, deleted and inserted again would then seem to be gone: so those messages have a number, and are never equal.
-- NOTIFY takes fewer than 8000 bytes: no row may hold a value that makes its own write fail.
CREATE OR REPLACE FUNCTION public.gatepost_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation CONSTANT text := format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME);
    before   text;
    behind   text;
    rows     text;
    told     integer := coalesce(NULLIF(current_setting('gatepost.changes_told', true), '')::integer, 0);
    number   bigint;
    old_row  jsonb;
    new_row  jsonb;
    kind     text;
    moved    boolean;
    messages text[] := '{}';
    each     record;
    head     integer;
    at_once  integer;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify('gatepost_changes', json_build_array(relation)::text);
        RETURN NULL;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT count(*) INTO number FROM gatepost_old;
    ELSE
        SELECT count(*) INTO number FROM gatepost_new;
    END IF;
    IF number = 0 THEN
        RETURN NULL;
    END IF;
    -- Most statements write one row: that needs no SQL that is planned each time.
    IF number = 1 AND told < 1000 THEN
        IF TG_OP <> 'INSERT' THEN
            SELECT to_jsonb(gatepost_it) INTO old_row FROM gatepost_old AS gatepost_it;  -- not a name that a column may have
        END IF;
        IF TG_OP <> 'DELETE' THEN
            SELECT to_jsonb(gatepost_it) INTO new_row FROM gatepost_new AS gatepost_it;
        END IF;
        FOR place IN 1 .. 2 LOOP
            kind := CASE place WHEN 1 THEN 'organization' ELSE 'user' END;
            moved := (old_row->>TG_ARGV[place], old_row->>TG_ARGV[0]) IS DISTINCT FROM (new_row->>TG_ARGV[place], new_row->>TG_ARGV[0]);
            IF old_row->>TG_ARGV[place] <> '' AND moved THEN
                messages := messages || json_build_array(relation, kind, old_row->>TG_ARGV[place], 'd', ARRAY[old_row->>TG_ARGV[0]], told)::text;
            END IF;
            IF new_row->>TG_ARGV[place] <> '' THEN
                messages := messages || CASE
                    WHEN moved THEN json_build_array(relation, kind, new_row->>TG_ARGV[place], 'i', ARRAY[new_row->>TG_ARGV[0]], told)
                    ELSE json_build_array(relation, kind, new_row->>TG_ARGV[place], 'u', ARRAY[new_row->>TG_ARGV[0]])
                END::text;
            END IF;
        END LOOP;
        IF octet_length(messages::text) <= 1000 * cardinality(messages) + 2 THEN
            FOREACH kind IN ARRAY messages LOOP
                PERFORM pg_notify('gatepost_changes', kind);
            END LOOP;
            PERFORM set_config('gatepost.changes_told', (told + 1)::text, true);
            RETURN NULL;
        END IF;
    END IF;
    before := format('SELECT k.kind, k.tenant, t.%I::text AS id FROM ', TG_ARGV[0]);
    behind := format(' AS t, LATERAL (VALUES %s) AS k (kind, tenant) WHERE k.tenant <> ''''',
                     concat_ws(', ', CASE WHEN TG_ARGV[1] <> '' THEN format('(''organization'', t.%I)', TG_ARGV[1]) END,
                                     CASE WHEN TG_ARGV[2] <> '' THEN format('(''user'', t.%I)', TG_ARGV[2]) END));
    rows := CASE TG_OP
        WHEN 'INSERT' THEN 'SELECT n.*, ''i'' AS what FROM (' || before || 'gatepost_new' || behind || ') AS n'
        WHEN 'DELETE' THEN 'SELECT o.*, ''d'' AS what FROM (' || before || 'gatepost_old' || behind || ') AS o'
        ELSE 'SELECT kind, tenant, id, CASE WHEN o IS NULL THEN ''i'' WHEN n IS NULL THEN ''d'' ELSE ''u'' END AS what'
             ' FROM (' || before || 'gatepost_old' || behind || ') AS o FULL JOIN ('
                       || before || 'gatepost_new' || behind || ') AS n USING (kind, tenant, id)'
    END;
    IF told + number > 1000 THEN
        EXECUTE format('SELECT array_agg(json_build_array(%L, kind, tenant)::text) AS messages'
                       ' FROM (SELECT DISTINCT kind, tenant FROM (%s) AS r LIMIT 51) AS tenants', relation, rows) INTO each;
        IF cardinality(each.messages) > 50 OR 2000 < (SELECT max(octet_length(m)) FROM unnest(each.messages) AS m) THEN
            each.messages := ARRAY[json_build_array(relation)::text];
        END IF;
        PERFORM pg_notify('gatepost_changes', m) FROM unnest(each.messages) AS m;
        number := 0;
        told := 1001;
    ELSE
        FOR each IN EXECUTE 'SELECT kind, tenant, what, array_agg(id) AS ids, max(octet_length(to_json(id)::text)) AS longest'
                            ' FROM (' || rows || ') AS r GROUP BY kind, tenant, what' LOOP
            head := octet_length(json_build_array(relation, each.kind, each.tenant, each.what)::text);
            at_once := (7900 - head) / (each.longest + 1);
            IF head > 2000 THEN
                PERFORM pg_notify('gatepost_changes', json_build_array(relation)::text);
            ELSIF each.longest > 1000 THEN
                PERFORM pg_notify('gatepost_changes', json_build_array(relation, each.kind, each.tenant)::text);
            ELSE
                FOR place IN 1 .. cardinality(each.ids) BY at_once LOOP
                    PERFORM pg_notify('gatepost_changes', CASE WHEN each.what = 'u'
                        THEN json_build_array(relation, each.kind, each.tenant, each.what, each.ids[place : place + at_once - 1])
                        ELSE json_build_array(relation, each.kind, each.tenant, each.what, each.ids[place : place + at_once - 1], told)
                    END::text);
                END LOOP;
            END IF;
        END LOOP;
    END IF;
    PERFORM set_config('gatepost.changes_told', (told + number)::text, true);
    RETURN NULL;
END $$;

-- The triggers of gatepost_changes. A statement has one message for each tenant, not one for each row. One that was disabled stays
-- disabled (CREATE OR REPLACE would enable it): transactions with a NOTIFY commit one after the other, so an operator disables
-- the triggers of a table that has many writes and that no client watches.
CREATE OR REPLACE FUNCTION public.gatepost_tell_changes(of_table regclass, id name, organization name, "user" name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    each record;
    off  CONSTANT name[] := ARRAY(SELECT t.tgname FROM pg_trigger AS t WHERE t.tgrelid = of_table AND t.tgenabled = 'D');
BEGIN
    FOR each IN SELECT * FROM (VALUES ('insert', 'REFERENCING NEW TABLE AS gatepost_new'), ('delete', 'REFERENCING OLD TABLE AS gatepost_old'),
                                      ('update', 'REFERENCING OLD TABLE AS gatepost_old NEW TABLE AS gatepost_new'), ('truncate', ''))
                         AS events (event, tables) LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER %I AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION public.gatepost_changed(%L, %L, %L)',
                       'changed_' || each.event, each.event, of_table, each.tables, id, coalesce(organization, ''), coalesce("user", ''));
        IF 'changed_' || each.event = ANY (off) THEN
            EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', of_table, 'changed_' || each.event);
        END IF;
    END LOOP;
END $$;

-- Report the changes of a table to the organisation in the column `organization`, to the user in the column "user", or to both.
-- A later call replaces the columns. Raises invalid_parameter_value for a table whose changes cannot be reported.
CREATE OR REPLACE FUNCTION public.gatepost_changes(of_table regclass, organization text DEFAULT NULL, "user" text DEFAULT NULL)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    id    name;
    found record;
    fault text;
BEGIN
    PERFORM public.gatepost_must_be_own(of_table);
    fault := CASE
        WHEN organization IS NULL AND "user" IS NULL
            THEN 'name the column of its tenant, as in organization => ''organization_id'' or "user" => ''user_id'''
        WHEN organization = "user" THEN format('%I cannot be both organization and user', organization)
    END;
    fault := coalesce(fault, public.gatepost_tenant_column_fault(of_table, ARRAY[organization, "user"]));
    SELECT count(*) AS columns, min(a.attname::text) AS name, min(a.atttypid::bigint)::oid AS type INTO found
      FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = of_table AND a.attnum = ANY (i.indkey)
     WHERE i.indrelid = of_table AND i.indisprimary;
    id := found.name;
    fault := coalesce(fault, CASE
        WHEN found.columns = 0 THEN 'it has no primary key: a change is reported with the id of its row'
        WHEN found.columns > 1 THEN 'its primary key has several columns: a change is reported with one id'
        WHEN found.type <> ALL (ARRAY['uuid', 'text', 'varchar', 'smallint', 'integer', 'bigint']::regtype[])
            THEN format('its primary key %I is %s: an id is uuid, text or a whole number', id, format_type(found.type, NULL))
    END);
    FOR found IN SELECT t.tgname FROM pg_trigger AS t
                  WHERE t.tgrelid = of_table AND t.tgfoid <> 'public.gatepost_changed()'::regprocedure
                    AND t.tgname IN ('changed_insert', 'changed_update', 'changed_delete', 'changed_truncate') LOOP
        fault := coalesce(fault, format('it has a trigger %I of another origin: rename it', found.tgname));
    END LOOP;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'gatepost_changes(''%''): %', of_table, fault USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM public.gatepost_tell_changes(of_table, id, organization, "user");
END $$;

REVOKE ALL ON FUNCTION public.gatepost_changed(), public.gatepost_tell_changes(regclass, name, name, name),
    public.gatepost_changes(regclass, text, text) FROM PUBLIC;
SELECT gatepost_tell_changes('data', 'id', NULL, 'user_id'), gatepost_tell_changes('org_data', 'id', 'organization_id', NULL);
