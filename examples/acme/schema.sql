-- The table of acme-gatepost. Run it as the owner of Gatepost's database, after `python -m server migrate`; it can be run again.
-- psql "$DATABASE_OWNER_URL" --single-transaction -v ON_ERROR_STOP=1 -f schema.sql

CREATE TABLE IF NOT EXISTS todos (
    id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id text        NOT NULL CHECK (char_length(organization_id) BETWEEN 1 AND 255),
    created_by      text        NOT NULL CHECK (char_length(created_by) BETWEEN 1 AND 255),
    title           text        NOT NULL CHECK (char_length(title) BETWEEN 1 AND 200),
    completed_at    timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS todos_by_org ON todos (organization_id, created_at DESC, id DESC);

-- Forced: the owner is bound too. Without a caller the settings are empty, and no row is anybody's.
ALTER TABLE todos ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS org_select ON todos;
CREATE POLICY org_select ON todos FOR SELECT TO gatepost_app
    USING (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''));
DROP POLICY IF EXISTS org_insert ON todos;
CREATE POLICY org_insert ON todos FOR INSERT TO gatepost_app
    WITH CHECK (organization_id = NULLIF(current_setting('gatepost.org_id', true), '')
                AND created_by = NULLIF(current_setting('gatepost.user_id', true), ''));
DROP POLICY IF EXISTS org_update ON todos;
CREATE POLICY org_update ON todos FOR UPDATE TO gatepost_app
    USING (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''))
    WITH CHECK (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''));

-- By column: no caller can move a row to another organisation, or change who created it.
REVOKE ALL ON todos FROM PUBLIC, gatepost_app;
GRANT SELECT, INSERT (organization_id, created_by, title), UPDATE (completed_at) ON todos TO gatepost_app;
