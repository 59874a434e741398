"""The rows of large.py: a database that grows in every table at once, and of which a few tenants have most.

The k-th user has a part of all rows in proportion to 1/k (Zipf), and so has the k-th organisation: of ten million rows and a
hundred thousand users the first one has about 600,000, the hundredth 8,600, and most have fewer than ten. Triggers are
off while rows are loaded: neither the audit log nor NOTIFY is part of that.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, NamedTuple

import asyncpg
from issuer import org
from postgres import USER, Postgres

ORG = "'org_' || lpad({}::text, 24, '0')"
SPAN = "interval '390 days'"
"""The time over which rows are spread; nothing of it is old enough to be pruned."""
# $1 and $2: the numbers of the first and the last row, $3: users, $4: organisations, $5: the number of rows at the end.
_FROM = f"""FROM (
    SELECT n, now() - {SPAN} + n * ({SPAN} / $5::int) AS at, {USER.format("(floor(exp(random() * ln($3::int + 1)))::int - 1)")} AS who,
           {ORG.format("(floor(exp(random() * ln($4::int + 1)))::int - 1)")} AS org
      FROM generate_series($1::int, $2::int) AS n OFFSET 0) AS s"""
_DATA = f"""INSERT INTO data (user_id, org_id, name, payload, created_at, updated_at)
SELECT who, CASE WHEN n % 2 = 0 THEN org END, 'item ' || n, jsonb_build_object('kind', 'note', 'n', n), at, at {_FROM}"""
_ORG_DATA = f"""INSERT INTO org_data (organization_id, created_by, name, payload, created_at, updated_at)
SELECT org, who, 'item ' || n, jsonb_build_object('kind', 'note', 'n', n), at, at {_FROM}"""
_ID = "(lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(gen_random_uuid()::text, 16, 3) || substr(gen_random_uuid()::text, 20, 17))::uuid"
AUDIT = f"""INSERT INTO audit_log (id, created_at, org_id, user_id, actor, action, target, row_id, changed, request_id)
SELECT {_ID}, at, CASE WHEN n % 2 = 0 THEN org END, who, who, CASE WHEN n % 3 = 0 THEN 'update' ELSE 'insert' END, 'data',
       gen_random_uuid()::text, CASE WHEN n % 3 = 0 THEN '{{name,updated_at}}'::text[] END, 'a0b1c2d3e4f5a6b7c8d9e0f1' || n {_FROM}"""
_LATER = f"""INSERT INTO audit_log (id, created_at, org_id, user_id, actor, action, target, row_id, changed, request_id)
SELECT {_ID}, at, org_id, user_id, actor, action, target, row_id, changed, request_id
  FROM audit_log, LATERAL (SELECT created_at + {SPAN} / {{part}} AS at) AS later"""
_KEYS = f"""INSERT INTO api_keys (id, hash, name, user_id, created_by, created_at, revoked_at)
SELECT 'filler_' || n, sha256(convert_to(n::text, 'UTF8')), 'bench', who, who, at, CASE WHEN n % 100 > 0 THEN at END {_FROM}"""
_USERS = f"""INSERT INTO users (id, username, first_name, email, created_at, updated_at)
SELECT {USER.format("n")}, 'name ' || n, 'first', 'u' || n || '@example.com', now(), now() FROM generate_series($1::int, $2::int) AS n"""
_ORGS = f"""INSERT INTO organizations (id, name, slug, created_at, updated_at)
SELECT {ORG.format("n")}, 'name ' || n, 'org-' || n, now(), now() FROM generate_series($1::int, $2::int) AS n"""
_MEMBERS = f"""INSERT INTO memberships (organization_id, user_id, id, role, created_at, updated_at)
SELECT org, who, 'orgmem_' || n, 'org:member', at, at {_FROM} ON CONFLICT DO NOTHING"""
_NO_INDEXES = "UPDATE pg_index SET indisready = false, indisvalid = false WHERE indrelid = $1::regclass"


class Crowd(NamedTuple):
    """How many of each there are beside so many rows of `data`."""

    data: int
    org_data: int
    audit_log: int
    api_keys: int
    memberships: int
    users: int
    organizations: int


def crowd(rows: int, audit: int = 1) -> Crowd:
    """A crowd with so many rows of `data` and `audit` times as many entries of the audit log."""
    users = max(100, min(rows // 100, 100_000))
    return Crowd(rows, rows // 10, rows * audit, rows // 10, 3 * users, users, max(100, min(rows // 100, 10_000)))


async def grow(postgres: Postgres, before: Crowd, now: Crowd, end: Crowd) -> None:
    """Add the rows from one size to the next, of those that there will be at the end, and VACUUM ANALYZE."""
    async with postgres.admin(postgres.locked) as admin:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, admin.get_server_pid(), 15)  # others may be using this machine
        await admin.execute("SET session_replication_role = replica")
        await admin.execute("SET maintenance_work_mem = '512MB'")
        spread = {"data": _DATA, "org_data": _ORG_DATA, "audit_log": AUDIT, "api_keys": _KEYS}
        for table, sql in spread.items():
            # Not one index entry after the other: the indexes are built anew behind the rows.
            await admin.execute(_NO_INDEXES, table)
            await _insert(admin, sql, before, now, end, table)
            await admin.execute(f"REINDEX TABLE {table}")
        await _insert(admin, _MEMBERS, before, now, end, "memberships")
        await admin.execute(_USERS, before.users, now.users - 1)
        await admin.execute(_ORGS, before.organizations, now.organizations - 1)
        await admin.execute("VACUUM ANALYZE")


async def load_audit(admin: asyncpg.Connection, entries: int) -> None:
    """Fill an empty audit log with so many entries (a multiple of eight), of 100,000 users and 10,000 organisations.

    Those of the first eighth of the time are made one by one, and then copied three times with a later time.
    """
    await admin.execute("SET session_replication_role = replica")
    await admin.execute("SET maintenance_work_mem = '512MB'")
    await admin.execute(_NO_INDEXES, "audit_log")
    await admin.execute(AUDIT, 0, entries // 8 - 1, 100_000, 10_000, entries)
    for part in (8, 4, 2):
        await admin.execute(_LATER.format(part=part))
    await admin.execute("REINDEX TABLE audit_log")
    await admin.execute("RESET session_replication_role")
    await admin.execute("VACUUM ANALYZE audit_log")


async def _insert(admin: asyncpg.Connection, sql: str, before: Crowd, now: Crowd, end: Crowd, table: str) -> None:
    first, last = getattr(before, table), getattr(now, table) - 1
    await admin.execute(sql, first, last, now.users, now.organizations, getattr(end, table))


async def cursor_in(postgres: Postgres, table: str, tenant: str, whose: str, part: float) -> tuple[str, Any]:
    """(created_at as JSON has it, id) of the row behind such a part of one tenant's rows, newest first."""
    sql = f"""SELECT to_jsonb(created_at)#>>'{{}}', id::text FROM {table} WHERE {tenant} = $1 ORDER BY created_at DESC, id DESC
              OFFSET (SELECT floor(count(*) * $2::float8)::bigint FROM {table} WHERE {tenant} = $1) LIMIT 1"""
    async with postgres.admin(postgres.locked) as admin:
        row = await admin.fetchrow(sql, whose, part)
    return row[0], row[1]


async def expire(postgres: Postgres, entries: int) -> None:
    """Add so many entries of the audit log that are older than its retention."""
    sql = f"""INSERT INTO audit_log (id, created_at, org_id, actor, action, target)
SELECT {_ID}, at, $2, 'bench', 'insert', 'data'
  FROM generate_series(1, $1::int) AS n, LATERAL (SELECT now() - interval '500 days' + n * interval '1 second' AS at) AS a"""
    async with postgres.admin(postgres.locked) as admin:
        await admin.execute(sql, entries, org(0))
