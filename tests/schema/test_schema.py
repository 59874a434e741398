"""schema.sql: row-level security as the only lock, the grants and the roles; and `check` detects every way to damage them.

No statement here has a WHERE on a tenant, as in a handler that forgot it.
"""


from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from kits.postgres import TABLES, Server, cluster, database  # noqa: F401

from server.schema import safety
from server.schema.migrate import mark_in, mark_of, migrate, schema_text

SETTINGS = ("gatepost.user_id", "gatepost.org_id", "gatepost.admin_org_id")
DENIED = asyncpg.InsufficientPrivilegeError
# Ada and Bob belong to the organisation "red", Cleo to "blue"; a = administrator's scope.
ADA, BOB, CLEO = ("ada", "red", ""), ("bob", "red", ""), ("cleo", "blue", "")
BOB_ADMIN, CLEO_ADMIN = ("bob", "red", "red"), ("cleo", "blue", "blue")
NOBODY = ("", "", "")


def digest(word: str) -> bytes:
    return hashlib.sha256(word.encode()).digest()


SEED = """
INSERT INTO data (user_id, org_id, name) VALUES ('ada', 'red', 'ada red'), ('ada', 'blue', 'ada blue'), ('ada', NULL, 'ada none'),
                                                ('bob', 'red', 'bob red'), ('cleo', 'blue', 'cleo blue');
INSERT INTO org_data (organization_id, created_by, name) VALUES ('red', 'ada', 'r1'), ('red', 'bob', 'r2'), ('blue', 'cleo', 'b1');
INSERT INTO invoices (organization_id, created_by, customer, amount, currency)
    VALUES ('red', 'ada', 'r1', 1, 'EUR'), ('blue', 'cleo', 'b1', 2, 'EUR');
INSERT INTO api_keys (id, hash, name, user_id, org_id, created_by) VALUES
    ('k_ada', sha256('ada'), 'ada', 'ada', 'red', 'ada'), ('k_cleo', sha256('cleo'), 'cleo', 'cleo', NULL, 'cleo'),
    ('k_red', sha256('red'), 'red', NULL, 'red', 'bob'), ('k_blue', sha256('blue'), 'blue', NULL, 'blue', 'cleo');
"""


@pytest.fixture
async def app(cluster: Server, database: str) -> AsyncIterator[asyncpg.Connection]:  # noqa: F811
    """The serving role's connection to a database with rows of several tenants."""
    async with cluster.as_admin(database) as admin:
        await admin.execute(SEED)
    async with cluster.connected(cluster.serving_role, database) as connection:
        yield connection


@contextlib.asynccontextmanager
async def being(connection: asyncpg.Connection, who: tuple[str, str, str]) -> AsyncIterator[None]:
    """A transaction under this caller's scope, rolled back at the end."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        for name, value in zip(SETTINGS, who, strict=True):
            await connection.execute("SELECT set_config($1, $2, true)", name, value)
        yield
    finally:
        await transaction.rollback()


async def names(connection: asyncpg.Connection, sql: str) -> set[str]:
    return {row[0] for row in await connection.fetch(sql)}


async def refused(connection: asyncpg.Connection, sql: str, *arguments: Any) -> bool:
    """Whether the statement is refused; the transaction around it stays usable."""
    try:
        async with connection.transaction():
            await connection.execute(sql, *arguments)
    except DENIED:
        return True
    return False


# Who sees what -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("who", "seen"), [
    (ADA, {"ada red", "ada blue", "ada none"}), (BOB, {"bob red"}), (CLEO, {"cleo blue"}), (("ada", "", ""), {"ada red", "ada blue", "ada none"}),
    (BOB_ADMIN, {"bob red", "ada red"}), (CLEO_ADMIN, {"cleo blue", "ada blue"}), (("", "red", ""), set()), (("", "", "red"), {"ada red", "bob red"}),
    (NOBODY, set()), (("stranger", "green", "green"), set()),
])
async def test_data_is_seen(app: asyncpg.Connection, who: tuple[str, str, str], seen: set[str]) -> None:
    async with being(app, who):
        assert await names(app, "SELECT name FROM data") == seen


@pytest.mark.parametrize(("who", "changed", "deleted"), [
    (ADA, {"ada red", "ada blue", "ada none"}, {"ada red", "ada blue", "ada none"}), (BOB, {"bob red"}, {"bob red"}),
    (BOB_ADMIN, {"bob red"}, {"bob red", "ada red"}), (("", "", "red"), set(), {"ada red", "bob red"}), (NOBODY, set(), set()),
])
async def test_data_is_changed_and_deleted(app: asyncpg.Connection, who: tuple[str, str, str], changed: set[str], deleted: set[str]) -> None:
    """An administrator may delete all of the organisation's rows, but change only their own."""
    async with being(app, who):
        assert await names(app, "UPDATE data SET payload = '{\"x\": 1}' RETURNING name") == changed
    async with being(app, who):
        assert await names(app, "DELETE FROM data RETURNING name") == deleted


async def test_data_is_inserted_only_for_oneself_and_the_active_organisation(app: asyncpg.Connection) -> None:
    insert = "INSERT INTO data (user_id, org_id, name) VALUES ($1, $2, 'new')"
    async with being(app, ADA):
        assert not await refused(app, insert, "ada", "red")
        assert not await refused(app, insert, "ada", None)
        assert await refused(app, insert, "ada", "blue")
        assert await refused(app, insert, "bob", "red")
    async with being(app, BOB_ADMIN):
        assert await refused(app, insert, "ada", "red")
    async with being(app, ("ada", "", "")):
        assert await refused(app, insert, "ada", "red")
    async with being(app, NOBODY):
        assert await refused(app, insert, "ada", None)


@pytest.mark.parametrize(("table", "name"), [("org_data", "name"), ("invoices", "customer")])
async def test_the_organisations_rows(app: asyncpg.Connection, table: str, name: str) -> None:
    """Every caller with this active organisation sees, changes and deletes them, whatever the user or admin organisation in the scope."""
    red = await _as_owner(app, f"SELECT {name} FROM {table}", ("", "red", ""))
    for who, seen in ((ADA, red), (BOB_ADMIN, red), (CLEO, {"b1"}), (("", "red", ""), red), (("ada", "", ""), set()),
                      (("bob", "", "red"), set()), (NOBODY, set())):
        for sql in (f"SELECT {name} FROM {table}", f"UPDATE {table} SET {name} = {name} RETURNING {name}", f"DELETE FROM {table} RETURNING {name}"):
            async with being(app, who):
                assert await names(app, sql) == seen, (who, sql)
    assert red
    extra = {"org_data": "", "invoices": ", amount, currency"}[table], {"org_data": "", "invoices": ", 1, 'EUR'"}[table]
    insert = f"INSERT INTO {table} (organization_id, created_by, {name}{extra[0]}) VALUES ($1, $2, 'new'{extra[1]})"
    async with being(app, ADA):
        assert not await refused(app, insert, "red", "ada")
        assert await refused(app, insert, "blue", "ada")
        assert await refused(app, insert, "red", "bob")                # nobody signs with another one's name
    async with being(app, ("", "red", "")):
        assert not await refused(app, insert, "red", "key:k_red")
    async with being(app, NOBODY):
        assert await refused(app, insert, "red", "ada")


async def _as_owner(app: asyncpg.Connection, sql: str, who: tuple[str, str, str]) -> set[str]:
    async with being(app, who):
        return await names(app, sql)


async def test_keys(app: asyncpg.Connection) -> None:
    """A caller sees their own keys; the organisation's only in an administrator's scope; another user's never."""
    for who, seen in ((ADA, {"k_ada"}), (CLEO, {"k_cleo"}), (BOB, set()), (BOB_ADMIN, {"k_red"}), (CLEO_ADMIN, {"k_cleo", "k_blue"}),
                      (("", "red", ""), set()), (NOBODY, set())):
        for sql in ("SELECT id FROM api_keys", "UPDATE api_keys SET revoked_at = now() RETURNING id"):
            async with being(app, who):
                assert await names(app, sql) == seen, who
    insert = "INSERT INTO api_keys (id, hash, name, user_id, org_id, created_by) VALUES ('new', sha256('new'), 'new', $1, $2, 'x')"
    for who, user, org, wrong in ((ADA, "ada", "red", False), (ADA, "ada", None, False), (ADA, "ada", "blue", True), (ADA, "bob", "red", True),
                                  (ADA, None, "red", True), (BOB_ADMIN, None, "red", False), (BOB_ADMIN, None, "blue", True), (NOBODY, "ada", None, True)):
        async with being(app, who):
            assert await refused(app, insert, user, org) is wrong, (who, user, org)


# Grants ------------------------------------------------------------------------------------------------------------------

async def test_no_row_moves_and_no_hash_is_read(app: asyncpg.Connection) -> None:
    """Server-owned columns cannot be written, and nothing is granted beyond the four commands."""
    async with being(app, ("ada", "red", "red")):
        for table, columns in {"data": "id user_id org_id created_at updated_at", "org_data": "id organization_id created_by created_at updated_at",
                               "invoices": "id organization_id created_by created_at updated_at",
                               "api_keys": "id user_id org_id org_role org_permissions scopes created_by created_at expires_at previous_hash name"}.items():
            for column in columns.split():
                assert await refused(app, f"UPDATE {table} SET {column} = DEFAULT"), (table, column)
        for table in (*TABLES, "gatepost_meta"):
            assert await refused(app, f"TRUNCATE {table}")
            assert await refused(app, f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE") or table in ("data", "org_data", "invoices", "api_keys")
        for sql in ("SELECT hash FROM api_keys", "SELECT previous_hash FROM api_keys", "SELECT * FROM api_keys", "DELETE FROM api_keys",
                    "UPDATE api_keys SET scopes = '{all}'", "SELECT id FROM api_keys WHERE hash = 'x'",
                    "UPDATE api_keys SET revoked_at = now() RETURNING hash",
                    "INSERT INTO data (id, user_id, name) VALUES (gen_random_uuid(), 'ada', 'x')",
                    "INSERT INTO data (user_id, name, created_at) VALUES ('ada', 'x', now())",
                    "CREATE TABLE mine ()", "CREATE TEMP TABLE mine ()", "CREATE SCHEMA mine", "CREATE ROLE mine", "SET ROLE gatepost_auth",
                    "ALTER TABLE data DISABLE ROW LEVEL SECURITY", "DROP POLICY own_select ON data", "INSERT INTO gatepost_meta (checksum) VALUES ('x')",
                    "SET session_replication_role = replica", "DELETE FROM gatepost_meta", "UPDATE gatepost_meta SET checksum = 'x'"):
            assert await refused(app, sql), sql


async def test_a_switched_off_row_security_opens_nothing(app: asyncpg.Connection) -> None:
    await app.execute("SET row_security = off")
    for table in ("data", "org_data", "invoices"):
        assert await refused(app, f"SELECT * FROM {table}")


async def test_no_other_user_can_connect(cluster: Server, database: str) -> None:  # noqa: F811
    """PUBLIC no longer has CONNECT; and even with CONNECT a role can read no table."""
    guest = await cluster.create_role(f"guest_{database}")
    with pytest.raises(DENIED):
        async with cluster.connected(guest, database):
            pass
    async with cluster.as_admin(database) as admin:
        await admin.execute(f'GRANT CONNECT ON DATABASE "{database}" TO "{guest}"')
    async with cluster.connected(guest, database) as connection:
        for table in TABLES:
            assert await refused(connection, f"SELECT * FROM {table}")
        assert await refused(connection, "SELECT * FROM key_by_hash('x')")
        assert await refused(connection, "CREATE TEMP TABLE mine ()")


# Nobody ------------------------------------------------------------------------------------------------------------------

async def test_without_an_identity_there_are_no_rows(app: asyncpg.Connection) -> None:
    """A setting that was never made (NULL), made in an earlier transaction ('') or made outside of one: each means no caller."""
    assert [await app.fetchval("SELECT current_setting($1, true)", name) for name in SETTINGS] == [None] * 3
    for _ in range(2):
        for table in ("data", "org_data", "invoices"):
            assert await app.fetchval(f"SELECT count(*) FROM {table}") == 0
            assert await app.execute(f"DELETE FROM {table}") == "DELETE 0"
        assert await app.fetchval("SELECT count(id) FROM api_keys") == 0
        async with being(app, BOB_ADMIN):
            assert await app.fetchval("SELECT count(*) FROM data") == 2
        await app.execute("SELECT set_config('gatepost.user_id', 'ada', true)")
    assert [await app.fetchval("SELECT current_setting($1, true)", name) for name in SETTINGS] == [""] * 3


async def test_the_owner_sees_no_row_and_is_no_member(cluster: Server, database: str, app: asyncpg.Connection) -> None:  # noqa: F811
    """Row-level security is forced and the policies are the serving role's, so no setting helps the owner. Nor can it become a helper role."""
    async with cluster.connected(cluster.owner_role, database) as owner, being(owner, ("ada", "red", "red")):
        for table in TABLES:
            assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 0
        assert await refused(owner, "SELECT * FROM key_by_hash('x')")
        for role in ("gatepost_auth", "gatepost_sync", "gatepost_audit"):
            assert not await owner.fetchval("SELECT pg_has_role($1, 'USAGE')", role)
            if await owner.fetchval("SELECT current_setting('server_version_num')::int >= 160000"):
                assert await refused(owner, f"SET ROLE {role}")
        assert not await owner.fetchval("SELECT count(*) FROM pg_auth_members WHERE member = $1::regrole AND roleid::regrole::text ~ '^gatepost_'"
                                        " AND NOT admin_option", cluster.owner_role)


async def test_the_definer_function_finds_a_key_and_nothing_else_does(app: asyncpg.Connection, cluster: Server, database: str) -> None:  # noqa: F811
    key = await app.fetchrow("SELECT * FROM key_by_hash($1)", digest("red"))
    assert (key["id"], key["user_id"], key["org_id"]) == ("k_red", None, "red")
    assert not {"hash", "previous_hash"} & set(key.keys())
    for unknown in (digest("unknown"), b"", None):
        assert await app.fetch("SELECT * FROM key_by_hash($1)", unknown) == []
    await app.execute("SET row_security = off")
    assert await app.fetchval("SELECT id FROM key_by_hash($1)", digest("ada")) == "k_ada"
    # The same function in the table owner's hands finds nothing.
    async with cluster.connected(cluster.owner_role, database) as owner:
        await owner.execute("CREATE FUNCTION owners() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM api_keys';"
                            f"GRANT EXECUTE ON FUNCTION owners() TO \"{cluster.serving_role}\"")
    await app.execute("SET row_security = on")
    assert await app.fetchval("SELECT owners()") == 0


async def test_a_rotated_key_has_two_secrets_for_a_while(app: asyncpg.Connection) -> None:
    """The old hash is kept without being readable; without an overlap it is deleted; a revoked key stays revoked."""
    async def found(word: str) -> str | None:
        return await app.fetchval("SELECT id FROM key_by_hash($1)", digest(word))

    async with being(app, ADA):
        await app.execute("UPDATE api_keys SET hash = $1, previous_expires_at = now() + interval '1 minute' WHERE id = 'k_ada'", digest("two"))
        assert (await found("two"), await found("ada")) == ("k_ada", "k_ada")
        await app.execute("UPDATE api_keys SET previous_expires_at = now() WHERE id = 'k_ada'")
        assert (await found("two"), await found("ada")) == ("k_ada", None)
        await app.execute("UPDATE api_keys SET hash = $1, previous_expires_at = NULL WHERE id = 'k_ada'", digest("three"))
        assert (await found("three"), await found("two")) == ("k_ada", None)
        await app.execute("UPDATE api_keys SET revoked_at = now()")
        for spoilt in ("revoked_at = NULL", "hash = sha256('x')", "revoked_at = now() + interval '1 day'"):
            with pytest.raises(asyncpg.CheckViolationError):
                async with app.transaction():
                    await app.execute(f"UPDATE api_keys SET {spoilt}")
        await app.execute("UPDATE api_keys SET last_used_at = now()")


@pytest.mark.parametrize("sql", [
    "INSERT INTO data (user_id, name) VALUES ('ada', '')", "INSERT INTO data (user_id, name) VALUES ('ada', repeat('x', 201))",
    "INSERT INTO data (user_id, name, payload) VALUES ('ada', 'x', '[]')", "INSERT INTO data (user_id, name, payload) VALUES ('ada', 'x', 'null')",
    *(f"INSERT INTO invoices (organization_id, created_by, customer, amount, currency, due_on) VALUES ('red', 'ada', 'c', {rest})" for rest in
      ("-0.01, 'EUR', NULL", "'NaN', 'EUR', NULL", "1, 'eur', NULL", "1, 'EURO', NULL", "1, E'EUR\\n', NULL", "1, 'EUR', 'infinity'")),
    "INSERT INTO api_keys (id, hash, name, user_id, created_by) VALUES ('k', 'short', 'k', 'ada', 'ada')",
    "INSERT INTO api_keys (id, hash, name, user_id, created_by, org_role) VALUES ('k', sha256('k'), 'k', 'ada', 'ada', 'org:admin')",
])
async def test_values_that_no_row_may_have(app: asyncpg.Connection, sql: str) -> None:
    async with being(app, ADA):
        with pytest.raises(asyncpg.CheckViolationError):
            await app.execute(sql)


async def test_no_tenant_is_empty(app: asyncpg.Connection, cluster: Server, database: str) -> None:  # noqa: F811
    async with cluster.as_admin(database) as admin:
        for sql in ("INSERT INTO data (user_id, name) VALUES ('', 'x')", "INSERT INTO data (user_id, org_id, name) VALUES ('a', '', 'x')",
                    "INSERT INTO org_data (organization_id, created_by, name) VALUES ('', 'a', 'x')",
                    "INSERT INTO api_keys (id, hash, name, created_by) VALUES ('k', sha256('k'), 'k', 'a')"):
            with pytest.raises(asyncpg.CheckViolationError):
                await admin.execute(sql)


async def test_updated_at_always_moves(app: asyncpg.Connection) -> None:
    async with being(app, BOB):
        seen = [await app.fetchval("UPDATE data SET name = name RETURNING updated_at") for _ in range(20)]
    assert seen == sorted(set(seen))


# Migrating ---------------------------------------------------------------------------------------------------------------

async def _shape(connection: asyncpg.Connection) -> list[tuple[Any, ...]]:
    """Everything that a second run might duplicate or lose."""
    return [tuple(row) for row in await connection.fetch("""
        SELECT 'policy', polrelid::regclass::text, polname::text, polcmd::text, polroles::regrole[]::text, pg_get_expr(polqual, polrelid) FROM pg_policy
        UNION ALL SELECT 'acl', relname, relacl::text, relrowsecurity::text, relforcerowsecurity::text, NULL FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT 'column', attrelid::regclass::text, attname, attacl::text, NULL, NULL FROM pg_attribute
                   WHERE attacl IS NOT NULL AND attrelid::regclass::text = ANY ($1)
        UNION ALL SELECT 'function', proname, proacl::text, proowner::regrole::text, NULL, NULL FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, NULL, NULL, NULL FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT 'schema', nspname, nspacl::text, NULL, NULL, NULL FROM pg_namespace WHERE nspname = 'public'
        UNION ALL SELECT 'member', roleid::regrole::text, member::regrole::text, NULL, NULL, NULL FROM pg_auth_members WHERE roleid::regrole::text ~ '^gatepost'
        ORDER BY 1, 2, 3, 4""", list(TABLES))]


async def test_migrating_again_changes_nothing(cluster: Server, database: str, app: asyncpg.Connection) -> None:  # noqa: F811
    """By the owner and by a superuser: rows, rights, owners and marks stay unchanged, and damage is repaired."""
    async with cluster.as_admin(database) as admin:
        before = await _shape(admin)
        for user in (cluster.owner_role, cluster.admin, cluster.owner_role):
            async with cluster.connected(user, database) as connection:
                todo = await migrate(connection, serving_role=cluster.serving_role)
                assert not any("BYPASSRLS" in line for line in todo)  # said at the first migration
                assert await mark_in(connection) == mark_of(schema_text())
            assert await _shape(admin) == before
        assert await admin.fetchval("SELECT count(*) FROM gatepost_meta") == 1
        assert await admin.fetchval("SELECT count(*) FROM data") == 5
        await admin.execute(f'GRANT ALL ON data TO "{cluster.serving_role}", PUBLIC; ALTER TABLE data NO FORCE ROW LEVEL SECURITY;'
                            "ALTER POLICY own_select ON data USING (true)")
        await migrate(admin, serving_role=cluster.serving_role)
        assert await _shape(admin) == before


@pytest.mark.parametrize("superuser", [False, True])
async def test_a_first_migration_by_either_kind_of_owner(cluster: Server, superuser: bool) -> None:  # noqa: F811
    await cluster.template()
    owner = cluster.admin if superuser else cluster.owner_role
    name = await cluster.create_database(f"first_{cluster.run}_{superuser}".lower(), owner=owner)
    try:
        async with cluster.connected(owner, name) as connection:
            assert await mark_in(connection) != mark_of(schema_text())
            await migrate(connection, serving_role=cluster.serving_role)
            assert await mark_in(connection) == mark_of(schema_text())
        async with cluster.connected(cluster.serving_role, name) as connection:
            assert await safety.problems(connection) == []
    finally:
        await cluster.drop_database(name)


async def test_another_name_for_the_serving_role(cluster: Server) -> None:  # noqa: F811
    """A role whose name needs quoting, which already exists and keeps its options; nothing is granted to any other role."""
    await cluster.template()
    role = await cluster.create_role(f'Serving-{cluster.run}', "CONNECTION LIMIT 7")
    name = await cluster.create_database(f"named_{cluster.run}", owner=cluster.owner_role)
    try:
        async with cluster.connected(cluster.owner_role, name) as owner:
            await migrate(owner, serving_role=role)
        async with cluster.connected(role, name) as connection:
            assert await safety.problems(connection) == []
            assert await connection.fetchval("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", role) == 7
        with pytest.raises(DENIED):
            async with cluster.connected(cluster.serving_role, name):
                pass
        async with cluster.connected(cluster.owner_role, name) as owner:
            with pytest.raises(asyncpg.RaiseError):
                await migrate(owner, serving_role=cluster.owner_role)
            assert await mark_in(owner) == mark_of(schema_text())
    finally:
        await cluster.drop_database(name)


async def test_an_unfinished_migration_leaves_nothing(cluster: Server) -> None:  # noqa: F811
    """All or nothing: a failure at the end removes the tables again."""
    await cluster.template()
    name = await cluster.create_database(f"half_{cluster.run}", owner=cluster.owner_role)
    try:
        async with cluster.as_admin(name) as admin:
            await admin.execute("""
                CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
                    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity LIKE '%gatepost_tenant(%') THEN
                        RAISE EXCEPTION 'not this one';
                    END IF;
                END $$;
                CREATE EVENT TRIGGER late ON ddl_command_end EXECUTE FUNCTION refuse();
            """)
        async with cluster.connected(cluster.owner_role, name) as owner:
            with pytest.raises(asyncpg.PostgresError, match="not this one"):
                await migrate(owner, serving_role=cluster.serving_role)
            assert await owner.fetchval("SELECT to_regclass('data') IS NULL AND NOT pg_has_role('gatepost_auth', 'USAGE')")
    finally:
        await cluster.drop_database(name)


# Safety ------------------------------------------------------------------------------------------------------------------
# What is done to a good database (as a superuser; @APP is the serving role), and a part of what must be said about it.

SABOTAGE = {
    "no row-level security": ("ALTER TABLE data DISABLE ROW LEVEL SECURITY", "the table public.data has no row-level security"),
    "not forced": ("ALTER TABLE invoices NO FORCE ROW LEVEL SECURITY", "the table public.invoices has row-level security that does not bind its owner: run"),
    "open policy": ("CREATE POLICY open ON org_data USING (true)", "the policy open on public.org_data"),
    "open to the role": ("CREATE POLICY open ON data FOR DELETE TO @APP USING (1 = 1)", "the policy open on public.data"),
    "open check": ("CREATE POLICY open ON data FOR INSERT TO @APP WITH CHECK (true)", "the policy open on public.data"),
    "half open": ("ALTER POLICY own_update ON data WITH CHECK (true)", "the policy own_update on public.data"),
    "new table": ("CREATE TABLE notes (user_id text); GRANT SELECT ON notes TO @APP", "the table public.notes has no row-level security"),
    "new table, one column": ("CREATE TABLE notes (user_id text, n int); GRANT SELECT (n) ON notes TO PUBLIC", "the table public.notes has no row-level"),
    "new table in another schema": ("CREATE SCHEMA other; CREATE TABLE other.notes (org_id text); GRANT USAGE ON SCHEMA other TO @APP;"
                                    "GRANT INSERT ON other.notes TO @APP", "the table other.notes has no row-level security"),
    "no policy": ("CREATE TABLE notes (organization_id text); ALTER TABLE notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
                  "GRANT SELECT ON notes TO @APP", "the table public.notes has no policy"),
    "partitioned": ("CREATE TABLE parted (user_id text) PARTITION BY HASH (user_id); GRANT SELECT ON parted TO @APP; CREATE POLICY own ON parted"
                    " USING (user_id = current_setting('gatepost.user_id', true)); ALTER TABLE parted ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
                    "the table public.parted is partitioned by user_id"),
    "partitioned below": ("CREATE TABLE parted (user_id text, d date) PARTITION BY RANGE (d); GRANT SELECT ON parted TO @APP; CREATE POLICY own ON parted"
                          " USING (user_id = current_setting('gatepost.user_id', true)); ALTER TABLE parted ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL"
                          " SECURITY; CREATE TABLE sub PARTITION OF parted DEFAULT PARTITION BY LIST (lower(user_id))",
                          "the table public.parted is partitioned by user_id"),
    "view": ("CREATE VIEW everything AS SELECT * FROM data; GRANT SELECT ON everything TO @APP", "the view public.everything reads with its owner's"),
    "view, said no": ("CREATE VIEW everything WITH (security_invoker = off) AS SELECT * FROM data; GRANT SELECT ON everything TO PUBLIC",
                      "the view public.everything"),
    "materialised view": ("CREATE MATERIALIZED VIEW kept AS SELECT * FROM data; GRANT SELECT ON kept TO @APP", "the materialised view public.kept"),
    "definer function": ("CREATE FUNCTION all_data() RETURNS SETOF data LANGUAGE sql SECURITY DEFINER AS 'SELECT * FROM data'",
                         "the function public.all_data() runs with the rights of"),
    "definer by another signature": ("CREATE FUNCTION key_by_hash(text) RETURNS SETOF data LANGUAGE sql SECURITY DEFINER AS 'SELECT * FROM data'",
                                     "the function public.key_by_hash(text) runs with"),
    "another owner": ("GRANT CREATE ON SCHEMA public TO @OWNER; ALTER FUNCTION key_by_hash(bytea) OWNER TO @OWNER",
                      "the function public.key_by_hash(bytea) belongs to"),
    "loose search_path": ("ALTER FUNCTION key_by_hash(bytea) SET search_path = public", "has no pinned search_path"),
    "no search_path": ("ALTER FUNCTION key_by_hash(bytea) RESET ALL", "has no pinned search_path"),
    "not definer": ("ALTER FUNCTION key_by_hash(bytea) SECURITY INVOKER", "is not SECURITY DEFINER"),
    "function gone": ("DROP FUNCTION key_by_hash(bytea)", "the function public.key_by_hash(bytea) is missing"),
    "truncate": ("GRANT TRUNCATE ON data TO @APP", "has TRUNCATE on the table public.data"),
    "truncate by public": ("GRANT TRUNCATE ON gatepost_meta TO PUBLIC", "has TRUNCATE on the table public.gatepost_meta"),
    "references": ("GRANT REFERENCES (id) ON invoices TO @APP", "has REFERENCES on the table public.invoices"),
    "trigger": ("GRANT TRIGGER ON data TO @APP", "has TRIGGER on the table public.data"),
    "re-homing": ("GRANT UPDATE (org_id) ON data TO @APP", "can move rows to another tenant: UPDATE on public.data.org_id"),
    "hash": ("GRANT SELECT ON api_keys TO @APP", "can read public.api_keys.hash"),
    "create on a schema": ("GRANT CREATE ON SCHEMA public TO PUBLIC", "has CREATE on the schema public"),
    "temp": ("GRANT TEMP ON DATABASE @THIS TO PUBLIC", "has TEMP on the database"),
    "create on the database": ("GRANT CREATE ON DATABASE @THIS TO @APP", "has CREATE on the database"),
    "owner of a table": ("ALTER TABLE data OWNER TO @APP", "owns table data"),
    "owner of a schema": ("CREATE SCHEMA mine AUTHORIZATION @APP", "owns schema mine"),
    "owner of the database": ("ALTER DATABASE @THIS OWNER TO @APP", "owns database"),
    "default identity": ("ALTER ROLE @APP IN DATABASE @THIS SET gatepost.user_id = 'ada'", "gatepost.user_id has a default value"),
    "old schema": ("INSERT INTO gatepost_meta (checksum) VALUES ('older')", "not this version's"),
    "another text of the same revision": ("INSERT INTO gatepost_meta (checksum, generation, revision)"
                                          " SELECT 'other', generation, revision FROM gatepost_meta", "not this version's"),
    "a newer generation": ("INSERT INTO gatepost_meta (checksum, generation, revision) VALUES ('newer', 1000, 1)", "run a newer version"),
    "no mark": ("DROP TABLE gatepost_meta", "the database has no Gatepost schema: run `python -m server migrate`"),
    "superuser": ("ALTER ROLE @APP SUPERUSER", "has the attribute SUPERUSER"),
    "bypassrls": ("ALTER ROLE @APP BYPASSRLS", "has the attribute BYPASSRLS"),
    "createrole": ("ALTER ROLE @APP CREATEROLE", "has the attribute CREATEROLE"),
    "createdb": ("ALTER ROLE @APP CREATEDB", "has the attribute CREATEDB"),
    "replication": ("ALTER ROLE @APP REPLICATION", "has the attribute REPLICATION"),
    "member of a plain role": ("GRANT @GUEST TO @APP", "is a member of between_"),
    "member of a helper": ("GRANT gatepost_auth TO @APP", "is a member of gatepost_auth"),
    "member of all": ("GRANT pg_read_all_data TO @APP", "is a member of pg_read_all_data"),
    "member of a member": ("GRANT @GUEST TO @APP; GRANT pg_write_all_data TO @GUEST", "is a member of pg_write_all_data"),
    "not audited": ("DROP TRIGGER audited ON invoices", "writes to the table public.invoices are not audited"),
    "audit switched off": ("ALTER TABLE api_keys DISABLE TRIGGER audited", "writes to the table public.api_keys are not audited"),
    "audited in part": ("CREATE OR REPLACE TRIGGER audited AFTER INSERT OR UPDATE ON data FOR EACH ROW EXECUTE FUNCTION gatepost_audited('org_id', 'id')",
                        "writes to the table public.data are not audited"),
    "audited sometimes": ("CREATE OR REPLACE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON data FOR EACH ROW WHEN (pg_trigger_depth() > 7)"
                          " EXECUTE FUNCTION gatepost_audited('org_id', 'id')", "writes to the table public.data are not audited"),
    "audited by another": ("CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
                           "CREATE OR REPLACE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON org_data FOR EACH ROW EXECUTE FUNCTION nothing()",
                           "writes to the table public.org_data are not audited"),
    "the log can be changed": ("ALTER TABLE audit_log DISABLE TRIGGER append_only", "the audit log is not append-only"),
    "the log can be forged": ("GRANT INSERT ON audit_log TO @APP", "has INSERT on the audit log"),
    "the log can be forged in part": ("GRANT INSERT (actor) ON audit_log TO PUBLIC", "has INSERT on the audit log"),
    "the log can be written over": ("GRANT UPDATE (actor) ON audit_log TO @APP", "has UPDATE on the audit log"),
    "the log can be emptied": ("GRANT DELETE ON audit_log TO @APP", "has DELETE on the audit log"),
    "another owner of the note": ("GRANT CREATE ON SCHEMA public TO @OWNER; ALTER FUNCTION gatepost_audited() OWNER TO @OWNER",
                                  "the function public.gatepost_audited() belongs to"),
    "default actor": ("ALTER ROLE @APP IN DATABASE @THIS SET gatepost.actor = 'ada'", "gatepost.actor has a default value"),
    "read-only": ("ALTER ROLE @APP IN DATABASE @THIS SET default_transaction_read_only = on", "the database is read-only (default_transaction_read_only"),
    "no row_security": ("ALTER ROLE @APP IN DATABASE @THIS SET row_security = off", "row_security is off for the role"),
    "strings of another age": ("ALTER ROLE @APP IN DATABASE @THIS SET standard_conforming_strings = off", "standard_conforming_strings is off"),
    "another search_path": ("ALTER ROLE @APP IN DATABASE @THIS SET search_path = other", "does not see the schema public (its search_path is other)"),
    "no usage": ("REVOKE USAGE ON SCHEMA public FROM PUBLIC, @APP", "does not see the schema public"),
    "parameter": ("GRANT SET ON PARAMETER session_replication_role TO @APP", "may change the parameter session_replication_role"),
}
REPAIR = ("ALTER ROLE @APP NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION; REVOKE gatepost_auth, pg_read_all_data, @GUEST FROM @APP;"
          "REVOKE ALL ON PARAMETER session_replication_role FROM @APP")


async def test_a_fresh_database_is_safe(cluster: Server, app: asyncpg.Connection) -> None:  # noqa: F811
    assert await safety.problems(app) == []
    await app.execute("SELECT set_config('gatepost.user_id', 'ada', true)")
    assert await safety.problems(app) == []


@pytest.mark.parametrize(("done", "said"), SABOTAGE.values(), ids=SABOTAGE)
async def test_sabotage_is_reported(cluster: Server, database: str, done: str, said: str) -> None:  # noqa: F811
    guest = f"between_{cluster.run}"
    if guest not in cluster.roles:
        await cluster.create_role(guest)
    words = {"APP": cluster.serving_role, "OWNER": cluster.owner_role, "THIS": database, "GUEST": guest}

    def named(sql: str) -> str:
        for word, name in words.items():
            sql = sql.replace(f"@{word}", f'"{name}"')
        return sql

    async with cluster.as_admin(database) as admin:
        await admin.execute("SET client_min_messages = error")
        await admin.execute(named(done))
        try:
            async with cluster.connected(cluster.serving_role, database) as connection:
                found = await safety.problems(connection)
        finally:
            await admin.execute(named(REPAIR))
    assert any(said in one for one in found), found


async def test_a_borrowed_role_is_reported(cluster: Server, database: str) -> None:  # noqa: F811
    """A role assumed with SET ROLE is not a serving role, because the session can leave it again."""
    async with cluster.as_admin(database) as admin:
        await admin.execute(f'SET ROLE "{cluster.serving_role}"')
        assert any("can leave the role" in one for one in await safety.problems(admin))


async def test_harmless_things_are_no_problem(cluster: Server, database: str) -> None:  # noqa: F811
    """A table without tenants, a view with its reader's rights, objects that the role cannot access, restrictive policies."""
    async with cluster.as_admin(database) as admin:
        await admin.execute(f"""
            CREATE TABLE countries (code text); GRANT SELECT ON countries TO "{cluster.serving_role}";
            CREATE VIEW mine WITH (security_invoker) AS SELECT * FROM data; GRANT SELECT ON mine TO "{cluster.serving_role}";
            CREATE TABLE hidden (user_id text); CREATE VIEW unseen AS SELECT * FROM data;
            CREATE SCHEMA away; CREATE FUNCTION away.all_data() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
            CREATE FUNCTION quiet() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; REVOKE ALL ON FUNCTION quiet() FROM PUBLIC;
            CREATE POLICY more ON data AS RESTRICTIVE USING (true)""")
    async with cluster.connected(cluster.serving_role, database) as connection:
        assert await safety.problems(connection) == []
