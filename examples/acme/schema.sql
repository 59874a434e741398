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

-- Row-level security, policies, rights by column, index, audit: docs/guides/tables.md shows all that it writes.
SELECT gatepost_tenant('todos', organization => 'organization_id', author => 'created_by');
