"""Finds where a schema lets one tenant learn about another's rows without reading them. `check` prints these as warnings.

Policies do not apply to constraints: a unique value, a foreign key and a serial number are checked against every tenant's
rows, and the result tells one tenant what another has. The catalogs are queried as the serving role.
"""

from __future__ import annotations

import secrets
from typing import Final

from .inventory import DEFINER_FUNCTIONS, SEARCH_PATH, TRIGGER_FUNCTIONS, sql_array
from .migrate import Connection
from .safety import ask, seen_by

# Our own indexes reveal nothing: the server generates their values at random, and a client chooses none.
_OURS: Final = "('idempotency_keys_pkey', 'api_keys_pkey', 'api_keys_hash_key', 'api_keys_previous_hash_key')"
_OUR_TRIGGERS: Final = sql_array(tuple(name.removesuffix("()") for name in (*TRIGGER_FUNCTIONS, "public.gatepost_audited()")))
_LOOK_ALIKE: Final = "('tenant', 'tenant_id', 'owner', 'owner_id', 'account_id', 'workspace_id', 'team_id', 'organisation_id')"

# A unique index is reported if a client can choose each of its columns (the role may write it, and it has no default) and
# none of them names the tenant.
_CONSTRAINTS: Final = f"""
SELECT format('the unique index %I on %s has no column of the tenant: a conflict tells that another tenant has the value',
              i.relname, c.name)
  FROM pg_index x JOIN tables c ON c.oid = indrelid JOIN pg_class i ON i.oid = indexrelid
 WHERE (indisunique OR indisexclusion) AND i.relname NOT IN {_OURS}
   AND NOT EXISTS (SELECT FROM unnest(indkey) AS k JOIN pg_attribute a ON attrelid = c.oid AND a.attnum = k
                    WHERE k IN (SELECT attnum FROM tenants WHERE relid = c.oid)
                       OR NOT has_column_privilege(c.oid, k, 'INSERT, UPDATE') OR atthasdef OR attidentity <> '')
UNION ALL
SELECT format('the foreign key %I on %s has no column of the tenant: it can name another tenant''s row, and tells that it is '
              'there', conname, c.name)
  FROM pg_constraint f JOIN tables c ON c.oid = conrelid JOIN tables r ON r.oid = confrelid
 WHERE contype = 'f'
   AND NOT EXISTS (SELECT FROM unnest(conkey, confkey) AS pair (here, there)
                     JOIN tenants t ON t.relid = f.conrelid AND t.attnum = here
                     JOIN tenants u ON u.relid = f.confrelid AND u.attnum = there)
UNION ALL
SELECT format('%s.%I counts all tenants'' rows: its numbers tell how many others make', c.name, attname)
  FROM tables c JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
 WHERE attidentity <> '' OR pg_get_serial_sequence(c.name, attname) IS NOT NULL
"""  # noqa: S608 - names of our own

_RIGHTS: Final = f"""
SELECT format('new %s of %I are granted to %s by default (ALTER DEFAULT PRIVILEGES)', word,
              pg_get_userbyid(defaclrole), CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee)::text END)
  FROM pg_default_acl, me, aclexplode(defaclacl),
       LATERAL (SELECT CASE defaclobjtype WHEN 'r' THEN 'tables' END AS word) AS kinds
 WHERE word IS NOT NULL AND grantee IN (0, me.oid)
UNION ALL
SELECT format('the role %I can write to %s, which no policy guards: one tenant can leave messages for another', rolname, name)
  FROM me, relations c
 WHERE relkind IN ('r', 'p') AND c.oid NOT IN (SELECT t.oid FROM tables t) AND has_any_column_privilege(c.oid, 'INSERT, UPDATE')
UNION ALL
SELECT format('the table %s has a column %I and no policy; if that names a tenant, it needs row-level security', name, attname)
  FROM relations c JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
 WHERE relkind IN ('r', 'p') AND c.oid NOT IN (SELECT t.oid FROM tables t) AND attname IN {_LOOK_ALIKE}
UNION ALL
SELECT format('the trigger %I on %s runs %s with the rights of %I', tgname, c.name, proname, pg_get_userbyid(proowner))
  FROM pg_trigger JOIN tables c ON c.oid = tgrelid JOIN pg_proc p ON p.oid = tgfoid
 WHERE NOT tgisinternal AND prosecdef AND NOT EXISTS (SELECT FROM unnest({_OUR_TRIGGERS}) AS ours (name)
                                                WHERE p.oid = to_regproc(ours.name))
"""  # noqa: S608

_LOOSE: Final = """
SELECT format('%I.%I', nspname, proname) AS name, pg_get_userbyid(proowner) AS owner
  FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace
 WHERE prosecdef AND nspname <> 'information_schema' AND nspname !~ '^pg_'
   AND NOT coalesce(proconfig::text LIKE '%search_path=%', false)
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e')
"""


async def warnings(connection: Connection) -> list[str]:
    """Returns a sentence for each leak. `connection` must be the serving role's, outside any request's transaction."""
    found = await ask(connection, _CONSTRAINTS) + await ask(connection, _RIGHTS)
    listed = {signature.partition("(")[0] for signature in DEFINER_FUNCTIONS}
    for row in await connection.fetch(_LOOSE):
        if row["name"] not in listed:  # for a listed function this is already a problem
            found.append(
                f"the function {row['name']} runs with the rights of {row['owner']} and takes names from the caller's "
                f"search_path: SET {SEARCH_PATH.replace('=', ' = ')}"
            )
    stranger = f"check_{secrets.token_hex(8)}"
    found += [f"a user with an unknown id sees rows of {name}" for name in await seen_by(connection, stranger)]
    return found


async def seen_by_nobody(connection: Connection) -> list[str]:
    """Returns a problem for each table with rows visible without a caller. It searches the tables, so startup skips it."""
    return [f"without a caller there are rows in {name}" for name in await seen_by(connection, "")]
