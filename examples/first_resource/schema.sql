CREATE TABLE IF NOT EXISTS notes (
    id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id    text        NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 255),
    text       text        NOT NULL CHECK (char_length(text) BETWEEN 1 AND 2000),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS notes_by_user ON notes (user_id, created_at DESC, id DESC);

ALTER TABLE notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS own_select ON notes;
CREATE POLICY own_select ON notes FOR SELECT TO gatepost_app
    USING (user_id = NULLIF(current_setting('gatepost.user_id', true), ''));
DROP POLICY IF EXISTS own_insert ON notes;
CREATE POLICY own_insert ON notes FOR INSERT TO gatepost_app
    WITH CHECK (user_id = NULLIF(current_setting('gatepost.user_id', true), ''));

REVOKE ALL ON notes FROM PUBLIC, gatepost_app;
GRANT SELECT, INSERT (user_id, text) ON notes TO gatepost_app;
