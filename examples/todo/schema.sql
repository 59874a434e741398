CREATE TABLE IF NOT EXISTS todos (
    id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id text        NOT NULL CHECK (char_length(organization_id) BETWEEN 1 AND 255),
    created_by      text        NOT NULL CHECK (char_length(created_by) BETWEEN 1 AND 255),
    title           text        NOT NULL CHECK (char_length(title) BETWEEN 1 AND 200),
    done            boolean     NOT NULL DEFAULT false,
    created_at      timestamptz NOT NULL DEFAULT now()
);

SELECT gatepost_tenant('todos', organization => 'organization_id', author => 'created_by', admin_deletes => true);
