"""Checks the catalogs as the serving role: it must have no excess rights, and each tenant table needs row-level security."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from ..database.statements import SET_SCOPE, SETTINGS
from .inventory import DEFINER_FUNCTIONS, HELPER_ROLES, SEARCH_PATH
from .migrate import Connection, is_newer, mark_in, mark_of, schema_text, trouble_with
from .safety_sql import COMMON, FUNCTIONS, QUESTIONS, READABLE, USES_ARGUMENT

TENANT_COLUMNS: Final = ("user_id", "org_id", "organization_id")


async def problems(connection: Connection) -> list[str]:
    """Returns what makes this database unsafe to serve from, a sentence per problem; empty if it is safe.

    `connection` must be the serving role's, outside any request's transaction.
    """
    mark, mine = await mark_in(connection), mark_of(schema_text())
    trouble = trouble_with(mark, mine)
    async with connection.transaction():
        # Behind a pooler an earlier client may have left a setting; what counts is the value that a connection begins with.
        await connection.execute("".join(f"SET LOCAL {name} TO DEFAULT;" for name in SETTINGS))
        found = [trouble] if trouble else []
        for question in QUESTIONS:
            found += await ask(connection, question)
        return found + await _functions(connection, newer=is_newer(mark, mine))


async def warnings(connection: Connection) -> list[str]:
    """Returns what an operator should know and is not a problem, a sentence each."""
    mark, mine = await mark_in(connection), mark_of(schema_text())
    if mark is None or mark == mine or trouble_with(mark, mine):
        return []
    return [f"the schema is a newer version's: revision {mark.revision}, where this server knows {mine.revision}"]


async def ask(connection: Connection, question: str) -> list[str]:
    """Returns the sentences from one query on the objects that the serving role can access."""
    return [row[0] for row in await connection.fetch(COMMON + question + USES_ARGUMENT, list(TENANT_COLUMNS))]


async def seen_by(connection: Connection, who: str) -> list[str]:
    """Returns the tenant tables in which a caller with `who` as user and organisation id sees a row ("": no caller).

    A table that cannot be searched within a second is skipped: an empty result does not prove that there are no rows.
    """
    found = []
    for name in await ask(connection, READABLE):
        with suppress(Exception):
            async with connection.transaction():
                await connection.execute("SET LOCAL statement_timeout = '1s'")
                await connection.fetch(SET_SCOPE, who, who, who)
                if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {name})"):  # noqa: S608 - quoted by Postgres
                    found.append(name)
    return found


async def _functions(connection: Connection, *, newer: bool) -> list[str]:
    """Problems with functions that run with their owner's rights: unlisted, missing, or not made as they must be.

    A newer schema may have more of them; those are recognised by their owner (a helper role) and their search_path.
    """
    names = [signature.partition("(")[0].partition(".")[2] for signature in DEFINER_FUNCTIONS]
    found, seen = [], set()
    for signature, owner, config, definer in await connection.fetch(FUNCTIONS, names):
        wanted = DEFINER_FUNCTIONS.get(signature)
        if wanted is None:
            known = newer and owner in HELPER_ROLES and SEARCH_PATH in (config or "").split("; ")
            if definer and not known:
                found.append(f"the function {signature} runs with the rights of {owner} and is not on the list")
            continue
        seen.add(signature)
        if owner != wanted:
            found.append(f"the function {signature} belongs to {owner}, not to {wanted}")
        if SEARCH_PATH not in (config or "").split("; "):
            found.append(f"the function {signature} has no pinned search_path")
        if not definer:
            found.append(f"the function {signature} is not SECURITY DEFINER, so it finds nothing")
    return found + [f"the function {missing} is missing" for missing in DEFINER_FUNCTIONS if missing not in seen]
