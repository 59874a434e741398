CREATE TABLE IF NOT EXISTS profiles (
    user_id  text PRIMARY KEY,
    username text NOT NULL UNIQUE,
    bio text, image text
);
CREATE TABLE IF NOT EXISTS logins (
    user_id  text PRIMARY KEY REFERENCES profiles,
    email    text NOT NULL UNIQUE,
    password text NOT NULL
);
CREATE TABLE IF NOT EXISTS articles (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    slug        text NOT NULL UNIQUE,
    author      text NOT NULL REFERENCES profiles,
    title       text NOT NULL,
    description text NOT NULL,
    body        text NOT NULL,
    tags        text[] NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS comments (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    article    uuid NOT NULL REFERENCES articles ON DELETE CASCADE,
    author     text NOT NULL REFERENCES profiles,
    body       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS favorites (user_id text REFERENCES profiles, article uuid REFERENCES articles ON DELETE CASCADE,
                                      PRIMARY KEY (user_id, article));
CREATE TABLE IF NOT EXISTS follows (user_id text REFERENCES profiles, author text REFERENCES profiles, PRIMARY KEY (user_id, author));
CREATE INDEX IF NOT EXISTS articles_by_tag ON articles USING gin (tags);
CREATE INDEX IF NOT EXISTS comments_by_article ON comments (article, id);
CREATE INDEX IF NOT EXISTS favorites_by_article ON favorites (article);

-- Whose rows they are: only their user adds, changes and deletes them.
SELECT gatepost_tenant('profiles', "user" => 'user_id'), gatepost_tenant('logins', "user" => 'user_id'),
       gatepost_tenant('articles', "user" => 'author'), gatepost_tenant('comments', "user" => 'author'),
       gatepost_tenant('favorites', "user" => 'user_id'), gatepost_tenant('follows', "user" => 'user_id');

-- What anyone reads: all of a blog, and of the logins the one whose address is being signed in with.
SELECT gatepost_public_rows(name, 'anyone reads a blog') FROM unnest('{profiles,articles,comments,favorites}'::regclass[]) AS name;
SELECT gatepost_public_rows('logins', 'signing in looks up one address');
DROP POLICY IF EXISTS anyone ON profiles; CREATE POLICY anyone ON profiles FOR SELECT TO gatepost_app USING (true);
DROP POLICY IF EXISTS anyone ON articles; CREATE POLICY anyone ON articles FOR SELECT TO gatepost_app USING (true);
DROP POLICY IF EXISTS anyone ON comments; CREATE POLICY anyone ON comments FOR SELECT TO gatepost_app USING (true);
DROP POLICY IF EXISTS anyone ON favorites; CREATE POLICY anyone ON favorites FOR SELECT TO gatepost_app USING (true);
DROP POLICY IF EXISTS sign_in ON logins; CREATE POLICY sign_in ON logins FOR SELECT TO gatepost_app
    USING (email = NULLIF(current_setting('conduit.email', true), ''));
