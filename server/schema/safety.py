"""Checks the catalogs as the serving role: it must have no excess rights, and each tenant table needs row-level security."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from ..database.statements import SET_SCOPE, SETTINGS
from .inventory import DEFINER_FUNCTIONS, HELPER_ROLES, SEARCH_PATH
from .migrate import Connection, is_newer, mark_in, mark_of, schema_text, trouble_with
from .missing_grants import missing_grants
from .public_rows import declared, unproven
from .safety_sql import COMMON, FUNCTIONS, QUESTIONS, READABLE, USES_ARGUMENTS
from .session_sql import session_faults

EMPTY: Final = "the database has no Gatepost schema: run `python -m server migrate`"
TENANT_COLUMNS: Final = ("user_id", "org_id", "organization_id")


async def problems(connection: Connection, role: str | None = None) -> list[str]:
    """Returns what makes this database unsafe to serve from, a sentence per problem; empty if it is safe.

    `role` is the serving role, by default the connection's own. Another role's connection (the owner's, in a transaction that
    is not committed yet) sees all but what only a session of the serving role has. No row of a table is read.
    """
    if faults := await session_faults(connection, role):
        return faults  # nothing else can be read as it will be
    mark, mine = await mark_in(connection), mark_of(schema_text())
    trouble = trouble_with(mark, mine)
    if await connection.fetchval("SELECT to_regclass('public.gatepost_meta') IS NULL"):
        return [EMPTY]  # everything else that is missing, or too much, follows from this
    async with connection.transaction():
        # Behind a pooler an earlier client may have left a setting; what counts is the value that a connection begins with.
        await connection.execute("".join(f"SET LOCAL {name} TO DEFAULT;" for name in SETTINGS))
        arguments = await _arguments(connection, role)
        found = [trouble] if trouble else []
        for question in QUESTIONS:
            found += await _ask(connection, question, arguments)
        doubtful = await unproven(connection, arguments)
        found += [line for line in doubtful if not any(other.startswith(line.partition(" may ")[0] + " ") for other in found)]
        return found + await _functions(connection, arguments, newer=is_newer(mark, mine))


def refusal(found: list[str]) -> str | None:
    """Returns in one line why a database with these problems is refused; None if there are none."""
    if not found:
        return None
    if found == [EMPTY]:
        return EMPTY
    more = f" (and {len(found) - 1} more; see `python -m server check`)" if len(found) > 1 else ""
    return f"the database is not safe to serve from: {found[0]}{more}"


async def warnings(connection: Connection) -> list[str]:
    """Returns what an operator should know and is not a problem, a sentence each."""
    mark, mine = await mark_in(connection), mark_of(schema_text())
    found = await ungranted(connection)
    if mark is not None and mark != mine and not trouble_with(mark, mine):
        found.append(f"the schema is a newer version's: revision {mark.revision}, where this server knows {mine.revision}")
    return found


async def ungranted(connection: Connection, role: str | None = None) -> list[str]:
    """Returns a sentence for each table that policies are for, and that `role` (by default the connection's) cannot use."""
    return await missing_grants(connection, role or await connection.fetchval("SELECT current_user::text"), TENANT_COLUMNS)


async def public_rows(connection: Connection) -> list[str]:
    """Returns a line for each table whose policies may show rows to no caller in particular: its name, and why."""
    return [f"rows of {table} may be seen without a caller: {reason}" for _, table, reason in await declared(connection)]


async def ask(connection: Connection, question: str) -> list[str]:
    """Returns the sentences from one query on the objects that the serving role, whose connection this is, can access."""
    return await _ask(connection, question, await _arguments(connection, None))


async def _ask(connection: Connection, question: str, arguments: list[object]) -> list[str]:
    return [row[0] for row in await connection.fetch(COMMON + question + USES_ARGUMENTS, *arguments)]


async def _arguments(connection: Connection, role: str | None) -> list[object]:
    """The arguments of every query of `safety_sql`."""
    serving = role or await connection.fetchval("SELECT current_user::text")
    return [list(TENANT_COLUMNS), serving, [table.oid for table in await declared(connection)]]


async def seen_by(connection: Connection, who: str) -> list[str]:
    """Returns the tenant tables in which a caller with `who` as user and organisation id sees a row ("": no caller).

    Tables that are declared to have public rows are left out. A table that cannot be searched within a second is skipped: an
    empty result does not prove that there are no rows.
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


async def _functions(connection: Connection, arguments: list[object], *, newer: bool) -> list[str]:
    """Problems with functions that run with their owner's rights: unlisted, missing, or not made as they must be.

    A newer schema may have more of them; those are recognised by their owner (a helper role) and their search_path.
    """
    names = [signature.partition("(")[0].partition(".")[2] for signature in DEFINER_FUNCTIONS]
    found, seen = [], set()
    for signature, owner, config, definer in await connection.fetch(FUNCTIONS, names, arguments[1]):
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
