"""What a session begins with and cannot work with: too old a server, a standby, a read-only database, or a setting."""

from __future__ import annotations

from typing import Any, Final

# $1: the serving role; NULL: the session's own.
_SESSION: Final = """
SELECT format(fault, current_user, current_setting('search_path'), current_setting('server_version'))
  FROM (VALUES
       ('Postgres %3$s is too old: the server needs 15 or newer', current_setting('server_version_num')::int < 150000),
       ('the server of the database is a standby, which cannot be written to: give the address of the primary',
        pg_is_in_recovery()),
       ('the database is read-only (default_transaction_read_only is on): switch that off for the role %1$I and the database. '
        'Some providers switch it on when the disk is full', NOT pg_is_in_recovery()
        AND current_setting('default_transaction_read_only') = 'on'),
       ('the role %1$I does not see the schema public (its search_path is %2$s): run ALTER ROLE %1$I RESET search_path, '
        'or add public to it', 'public' <> ALL (current_schemas(false))),
       ('row_security is off for the role %1$I: no table of tenants can be read. Run ALTER ROLE %1$I RESET row_security, or '
        'reset it for the database', current_setting('row_security') = 'off'),
       ('standard_conforming_strings is off for the role %1$I: switch it on for the role or the database',
        current_setting('standard_conforming_strings') = 'off'))
       AS faults (fault, found)
 WHERE found AND current_user = coalesce($1::name, current_user)
"""


async def session_faults(connection: Any, role: str | None = None) -> list[str]:
    """Returns a sentence for each such fault; empty where this session is not the one of `role`, if that is given.

    It reads nothing that the session may not read.
    """
    return [row[0] for row in await connection.fetch(_SESSION, role)]
