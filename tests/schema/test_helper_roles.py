"""The helper roles: no one may log in as them, be a member of them, or give them more rights. Checked at `check` and at the start."""

from __future__ import annotations

import re
from typing import Any

import pytest
from kits.postgres import Server

from server.schema import safety
from server.schema.inventory import AUDITED_TABLES, DEFINER_FUNCTIONS, HELPER_ROLES, TRIGGER_FUNCTIONS
from server.schema.migrate import schema_text

# What a superuser does (@HELPER is a helper role, @ONE and @TWO are roles of this test), what undoes it, and what must be reported.
FAULTS = {
    **{word: (f"ALTER ROLE @HELPER {word}", f"ALTER ROLE @HELPER NO{word}", f"the role @HELPER has the attribute {word}")
       for word in ("LOGIN", "SUPERUSER", "BYPASSRLS", "CREATEROLE")},
    "a member": ("GRANT @HELPER TO @ONE", "REVOKE @HELPER FROM @ONE", "the role @ONE has the rights of @HELPER"),
    "a member of a member": ("GRANT @HELPER TO @TWO; GRANT @TWO TO @ONE", "REVOKE @TWO FROM @ONE; REVOKE @HELPER FROM @TWO",
                             "the role @ONE has the rights of @HELPER"),
    "a member that does not inherit": ("ALTER ROLE @ONE NOINHERIT; GRANT @HELPER TO @ONE", "REVOKE @HELPER FROM @ONE; ALTER ROLE @ONE INHERIT",
                                       "the role @ONE has the rights of @HELPER"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("helper", HELPER_ROLES)
async def test_a_helper_role_that_someone_can_be_is_a_problem(postgres: Server, helper: str, fault: str) -> None:
    one, two = f"one_{postgres.run}", f"two_{postgres.run}"
    for name in {one, two} - set(postgres.roles):
        await postgres.create_role(name)
    done, undone, said = (text.replace("@HELPER", helper).replace("@ONE", one).replace("@TWO", two) for text in FAULTS[fault])
    database = await postgres.fresh()
    try:
        async with postgres.as_admin(database) as admin:
            await admin.execute(done)
            try:
                async with postgres.connected(postgres.serving_role, database) as connection:
                    assert said in await safety.problems(connection)
            finally:
                await admin.execute(undone)
        async with postgres.connected(postgres.serving_role, database) as connection:
            assert await safety.problems(connection) == []
    finally:
        await postgres.drop_database(database)


def test_the_inventory_names_every_role_that_the_schema_creates() -> None:
    """schema.sql lists its roles in one array; every other name that looks like a role of Gatepost's is compared, too."""
    text = schema_text()
    (created,) = re.findall(r"FOREACH name IN ARRAY ARRAY\[app, ([^\]]+)\] LOOP", text)
    assert tuple(re.findall(r"'(\w+)'", created)) == HELPER_ROLES
    assert len(re.findall(r"CREATE ROLE", text)) == 1
    assert set(re.findall(r"TO (gatepost_\w+) USING", text)) <= set(HELPER_ROLES)


async def test_the_inventory_is_what_the_schema_makes(postgres: Any) -> None:
    """The definer functions with their owners, and the audited tables, in a new database made by schema.sql."""
    database = await postgres.fresh()
    try:
        async with postgres.as_admin(database) as admin:
            made = await admin.fetch("""
                SELECT format('public.%s(%s)', proname, (SELECT string_agg(format_type(t, NULL), ', ' ORDER BY nth)
                                                           FROM unnest(proargtypes) WITH ORDINALITY AS types (t, nth))),
                       pg_get_userbyid(proowner)
                  FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace""")
            audited = await admin.fetch("""
                SELECT relname FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
                 WHERE tgfoid = 'public.gatepost_audited()'::regprocedure""")
    finally:
        await postgres.drop_database(database)
    assert dict(made) == DEFINER_FUNCTIONS | TRIGGER_FUNCTIONS
    assert {owner for _, owner in made} == set(HELPER_ROLES)
    assert {name for (name,) in audited} == {*AUDITED_TABLES, "revocations"}
