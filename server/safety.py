"""Is the serving role as weak as it has to be, and is every tenant's table locked? Asked of the catalogs, as that role."""

from __future__ import annotations

from typing import Final

from .migrate import Connection, is_newer, mark_in, mark_of, schema_text, trouble_with

# Every function that may run with another role's rights, and whose. A definer function that is not here is a hole.
LISTED_FUNCTIONS: Final[dict[str, str]] = {
    "public.key_by_hash(bytea)": "gatepost_auth",
    "public.touch_keys(text[], timestamp with time zone[])": "gatepost_auth",
    "public.apply_clerk_event(text, text, timestamp with time zone, jsonb, interval, interval)": "gatepost_sync",
    "public.live_revocations()": "gatepost_sync",
    "public.prune_sync()": "gatepost_sync",
    "public.prune_idempotency(integer)": "gatepost_sync",
    "public.replay_clerk_events(timestamp with time zone, text, integer, interval)": "gatepost_sync",
}
TENANT_COLUMNS: Final = ("user_id", "org_id", "organization_id")
SEARCH_PATH: Final = "search_path=pg_catalog, pg_temp"

# Each query gives one column, a sentence per problem. It starts with what they share:
# me: the role; tables: what it can touch outside the system's schemas, with the columns that name a tenant in it.
_COMMON: Final = """
WITH me AS (SELECT oid, rolname FROM pg_roles WHERE rolname = current_user),
schemas AS (SELECT oid, nspname FROM pg_namespace
             WHERE nspname <> 'information_schema' AND nspname !~ '^pg_' AND has_schema_privilege(oid, 'USAGE')),
relations AS (SELECT c.*, format('%I.%I', nspname, relname) AS name
                FROM pg_class c JOIN schemas s ON s.oid = relnamespace
               WHERE relkind IN ('r', 'p', 'f', 'v', 'm')
                 AND (has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
                      OR has_any_column_privilege(c.oid, 'SELECT, INSERT, UPDATE'))),
tables AS (SELECT c.* FROM relations c
            WHERE relkind IN ('r', 'p', 'f')
              AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = ANY ($1) AND NOT attisdropped)),
policies AS (SELECT p.*, c.name, concat_ws(' ', pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) AS said
               FROM pg_policy p JOIN tables c ON c.oid = polrelid, me
              WHERE polpermissive AND polroles && ARRAY[0::oid, me.oid])
"""

# The role itself: what it is, what it belongs to, what it owns, and who really sits at the other end.
_ROLE: Final = """
SELECT format('the role %I has the attribute %s', rolname, word)
  FROM pg_roles, LATERAL (VALUES ('SUPERUSER', rolsuper), ('BYPASSRLS', rolbypassrls), ('CREATEROLE', rolcreaterole),
       ('CREATEDB', rolcreatedb), ('REPLICATION', rolreplication)) AS attributes (word, has)
 WHERE rolname = current_user AND has
UNION ALL
SELECT format('the session belongs to %I, which can leave the role %I again: connect as the serving role itself',
              session_user, current_user) WHERE session_user <> current_user
UNION ALL
SELECT format('the role %I is a member of %I', current_user, rolname) FROM pg_roles WHERE oid IN (
    WITH RECURSIVE above AS (SELECT roleid FROM pg_auth_members JOIN me ON member = me.oid
                             UNION SELECT m.roleid FROM pg_auth_members m JOIN above a ON m.member = a.roleid)
    SELECT roleid FROM above)
UNION ALL
SELECT format('the role %I owns %s', rolname, pg_describe_object(classid, objid, objsubid))
  FROM pg_shdepend, me
 WHERE refclassid = 'pg_authid'::regclass AND refobjid = me.oid AND deptype = 'o'
   AND dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
UNION ALL
SELECT format('%s has a default value (%L), so a query without a caller runs as that one', name, current_setting(name, true))
  FROM unnest(ARRAY['gatepost.user_id', 'gatepost.org_id', 'gatepost.admin_org_id']) AS settings (name)
 WHERE current_setting(name, true) <> ''
"""

# Rights that no policy restrains, to the role or to PUBLIC.
_RIGHTS: Final = """
SELECT format('the role %I has %s on the table %s', rolname, word, name)
  FROM me, (SELECT c.oid, format('%I.%I', nspname, relname) AS name
              FROM pg_class c JOIN schemas s ON s.oid = relnamespace WHERE relkind IN ('r', 'p', 'f', 'v', 'm')) AS every
       CROSS JOIN unnest(ARRAY['TRUNCATE', 'REFERENCES', 'TRIGGER']
                         || CASE WHEN current_setting('server_version_num')::int >= 170000 THEN ARRAY['MAINTAIN'] END) AS word
 WHERE has_table_privilege(every.oid, word)
    OR (word = 'REFERENCES' AND has_any_column_privilege(every.oid, 'REFERENCES'))
UNION ALL
SELECT format('the role %I has CREATE on the schema %I', rolname, nspname) FROM me, pg_namespace
 WHERE nspname !~ '^pg_(toast_)?temp_' AND has_schema_privilege(pg_namespace.oid, 'CREATE')
UNION ALL
SELECT format('the role %I has %s on the database %I', rolname, word, current_database())
  FROM me, unnest(ARRAY['CREATE', 'TEMP']) AS word WHERE has_database_privilege(current_database(), word)
UNION ALL
SELECT format('the role %I may change the parameter %s', rolname, parname)
  FROM me, pg_parameter_acl WHERE has_parameter_privilege(parname, 'SET, ALTER SYSTEM')
UNION ALL
SELECT format('the role %I can move rows to another tenant: UPDATE on %s.%I', rolname, name, attname)
  FROM me, tables JOIN pg_attribute ON attrelid = tables.oid
 WHERE attname = ANY ($1) AND NOT attisdropped AND has_column_privilege(tables.oid, attnum, 'UPDATE')
UNION ALL
SELECT format('the role %I can read %s.%I', rolname, name, attname)
  FROM me, tables JOIN pg_attribute ON attrelid = tables.oid
 WHERE relname = 'api_keys' AND attname IN ('hash', 'previous_hash') AND has_column_privilege(tables.oid, attnum, 'SELECT')
"""

# Row-level security of every table that names a tenant.
_TABLES: Final = """
SELECT format('the table %s has %s', name, fault)
  FROM tables, LATERAL (VALUES
       ('rows of another server, which row-level security does not reach', relkind = 'f'),
       ('no row-level security: ENABLE it', relkind <> 'f' AND NOT relrowsecurity),
       ('row-level security that its owner is free of: FORCE it', relkind <> 'f' AND NOT relforcerowsecurity),
       ('no policy', relkind <> 'f' AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = tables.oid)))
       AS faults (fault, found)
 WHERE found
UNION ALL
SELECT format('the policy %I on %s does not depend on who is asking: %s', polname, name, said) FROM policies
 WHERE said <> '' AND (said !~ 'current_setting\\(''gatepost\\.'
                       OR 'true' IN (pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)))
UNION ALL
SELECT DISTINCT format('the table %s is partitioned by %I, which its policies use: one-statement reads can come back empty',
                       name, attname)
  FROM tables
  CROSS JOIN LATERAL pg_partition_tree(tables.oid) AS tree
  JOIN pg_partitioned_table p ON p.partrelid = tree.relid
  JOIN pg_attribute a ON a.attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
 WHERE relkind = 'p' AND pg_get_partkeydef(p.partrelid) ~ ('\\m' || attname || '\\M')
   AND EXISTS (SELECT FROM pg_depend d JOIN policies ON d.objid = policies.oid
                WHERE d.classid = 'pg_policy'::regclass AND d.refobjid = tables.oid AND d.refobjsubid = a.attnum)
"""

# What runs, or has run, with somebody else's rights.
_AROUND: Final = """
SELECT format('the view %s reads with its owner''s rights: set security_invoker', name) FROM relations c
 WHERE relkind = 'v'
   AND NOT EXISTS (SELECT FROM pg_options_to_table(reloptions) WHERE option_name = 'security_invoker' AND option_value::boolean)
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
UNION ALL
SELECT format('the role %I can touch the materialised view %s, which no policy guards', rolname, name) FROM me, relations
 WHERE relkind = 'm'
"""

_FUNCTIONS: Final = """
SELECT format('%I.%I(%s)', nspname, proname, (SELECT string_agg(format_type(t, NULL), ', ' ORDER BY nth)
                                                FROM unnest(proargtypes) WITH ORDINALITY AS types (t, nth))),
       pg_get_userbyid(proowner), array_to_string(proconfig, '; '), prosecdef
  FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace
 WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
   AND ((prosecdef AND has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(pg_proc.oid, 'EXECUTE'))
        OR proname = ANY ($1))
"""


async def problems(connection: Connection) -> list[str]:
    """What makes this database unsafe to serve, a sentence a problem; empty when it is safe.

    `connection` must be the serving role's, outside any request's transaction.
    """
    mark, mine = await mark_in(connection), mark_of(schema_text())
    trouble = trouble_with(mark, mine)
    found = [trouble] if trouble else []
    for query in (_ROLE, _RIGHTS, _TABLES, _AROUND):
        found += [row[0] for row in await connection.fetch(_COMMON + query + _USES_ARGUMENT, list(TENANT_COLUMNS))]
    return found + await _functions(connection, newer=is_newer(mark, mine))


async def warnings(connection: Connection) -> list[str]:
    """What an operator should know and is no problem, a sentence each."""
    mark, mine = await mark_in(connection), mark_of(schema_text())
    if mark is None or mark == mine or trouble_with(mark, mine):
        return []
    return [f"the schema is a newer version's: revision {mark.revision}, where this server knows {mine.revision}"]


# Every query takes the same argument; this makes its type known where nothing else does, and adds no row.
_USES_ARGUMENT: Final = "UNION ALL SELECT NULL WHERE cardinality($1::text[]) < 0"


async def _functions(connection: Connection, *, newer: bool) -> list[str]:
    """Problems with functions that run with their owner's rights: unlisted, missing, or not made as they must be.

    A newer schema may have more of them; those are known by their owner, a role that nobody can be, and their search_path.
    """
    names = [signature.partition("(")[0].partition(".")[2] for signature in LISTED_FUNCTIONS]
    found, seen = [], set()
    for signature, owner, config, definer in await connection.fetch(_FUNCTIONS, names):
        wanted = LISTED_FUNCTIONS.get(signature)
        if wanted is None:
            known = newer and owner in LISTED_FUNCTIONS.values() and SEARCH_PATH in (config or "").split("; ")
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
    return found + [f"the function {missing} is missing" for missing in LISTED_FUNCTIONS if missing not in seen]
