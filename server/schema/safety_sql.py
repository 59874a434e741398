"""The queries on the catalogs of startup, `check` and `migrate`. Each returns one column, a sentence per problem.

Their arguments: $1 the names of columns that name a tenant, $2 the serving role, $3 the tables that are declared to have public
rows (oid[]).
"""

from __future__ import annotations

from typing import Final

from ..database.statements import SETTINGS
from .inventory import AUDITED_TABLES, HELPER_ROLES, sql_array

# What every query starts with:
# me: the role; tables: those that it can access outside the system's schemas and that hold tenants' rows, by the name of a
# column or by a policy (its own, or that of a table it is a part of); tenants: the columns that name a tenant; policies: those
# for the role, each `open` if it may show rows to no caller: it is for SELECT alone, on a table with public rows.
COMMON: Final = r"""
WITH me AS (SELECT oid, rolname FROM pg_roles WHERE rolname = $2),
schemas AS (SELECT oid, nspname FROM pg_namespace
             WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
               AND has_schema_privilege($2, pg_namespace.oid, 'USAGE')),
relations AS (SELECT c.*, format('%I.%I', nspname, relname) AS name
                FROM pg_class c JOIN schemas s ON s.oid = relnamespace
               WHERE relkind IN ('r', 'p', 'f', 'v', 'm')
                 AND (has_table_privilege($2, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
                      OR has_any_column_privilege($2, c.oid, 'SELECT, INSERT, UPDATE'))),
guarded AS (SELECT oid FROM pg_class WHERE relrowsecurity UNION SELECT polrelid FROM pg_policy),
tables AS (SELECT c.* FROM relations c
            WHERE relkind IN ('r', 'p', 'f')
              AND (EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = ANY ($1) AND NOT attisdropped)
                   OR c.oid IN (SELECT oid FROM guarded)
                   OR EXISTS (SELECT FROM pg_partition_ancestors(c.oid) AS above JOIN guarded ON guarded.oid = above.relid)
                   OR EXISTS (SELECT FROM pg_inherits JOIN guarded ON guarded.oid = inhparent WHERE inhrelid = c.oid))),
policies AS (SELECT p.*, c.name, concat_ws(' ', pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) AS said,
                    polcmd = 'r' AND polrelid = ANY ($3) AS open
               FROM pg_policy p JOIN tables c ON c.oid = polrelid, me
              WHERE polpermissive AND polroles && ARRAY[0::oid, me.oid]),
tenants AS (SELECT c.oid AS relid, c.name, a.attnum, a.attname
              FROM tables c JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
             WHERE attname = ANY ($1)
                OR EXISTS (SELECT FROM policies, regexp_replace(quote_ident(attname), '(\W)', '\\\1', 'g') AS word
                            WHERE polrelid = c.oid
                              AND said ~ ('\(' || word || '\)?(::\w+)? = NULLIF\(current_setting\(''gatepost\.')))
"""

# The role itself: its attributes, memberships and possessions, the session's own role, and default values of the settings.
_ROLE: Final = f"""
SELECT format('the role %I has the attribute %s', rolname, word)
  FROM pg_roles, LATERAL (VALUES ('SUPERUSER', rolsuper), ('BYPASSRLS', rolbypassrls), ('CREATEROLE', rolcreaterole),
       ('CREATEDB', rolcreatedb), ('REPLICATION', rolreplication)) AS attributes (word, has)
 WHERE rolname = $2 AND has
UNION ALL
SELECT format('the session belongs to %I, which can leave the role %I again: connect as the serving role itself',
              session_user, current_user) WHERE session_user <> current_user AND current_user = $2
UNION ALL
SELECT format('the role %I is a member of %I', $2, rolname) FROM pg_roles WHERE oid IN (
    WITH RECURSIVE above AS (SELECT roleid FROM pg_auth_members JOIN me ON member = me.oid
                             UNION SELECT m.roleid FROM pg_auth_members m JOIN above a ON m.member = a.roleid)
    SELECT roleid FROM above)
UNION ALL
SELECT format('the role %I owns %s', rolname, pg_describe_object(classid, objid, objsubid))
  FROM pg_shdepend, me
 WHERE refclassid = 'pg_authid'::regclass AND refobjid = me.oid AND deptype = 'o'
   AND dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
UNION ALL
SELECT format('%s has a default value (%L), so a query without a caller runs as that tenant', name, current_setting(name, true))
  FROM unnest({sql_array(SETTINGS)})
       AS settings (name)
 WHERE current_setting(name, true) <> ''
UNION ALL
SELECT format('%s has a default value (%L), so a query without a caller runs as that tenant', name, value)
  FROM me, pg_db_role_setting, unnest(setconfig) AS setting,
       LATERAL (VALUES (split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1))) AS defaults (name, value)
 WHERE current_user <> me.rolname AND setrole IN (0, me.oid)  -- another role's connection does not have them
   AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   AND name = ANY ({sql_array(SETTINGS)}) AND value <> ''
"""  # noqa: S608 - names of our own

# The helper roles, whose policies may be open because no one can log in as them. A superuser has every right in any case.
# Since Postgres 16 the creator of a role is a member that neither inherits from it nor can set it: that is no problem.
_HELPERS: Final = f"""
SELECT format('the role %I has the attribute %s', rolname, word)
  FROM pg_roles, LATERAL (VALUES ('LOGIN', rolcanlogin), ('SUPERUSER', rolsuper), ('BYPASSRLS', rolbypassrls),
       ('CREATEROLE', rolcreaterole)) AS attributes (word, has)
 WHERE rolname = ANY ({sql_array(HELPER_ROLES)}) AND has
UNION ALL
SELECT format('the role %I has the rights of %I', r.rolname, h.rolname) FROM pg_roles r, pg_roles h, me
 WHERE h.rolname = ANY ({sql_array(HELPER_ROLES)}) AND r.oid NOT IN (h.oid, me.oid) AND NOT r.rolsuper
   AND pg_has_role(r.oid, h.oid,
                   CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'USAGE, SET' ELSE 'MEMBER' END)
"""  # noqa: S608

# Rights of the role or of PUBLIC that no policy restricts.
_RIGHTS: Final = """
SELECT format('the role %I has %s on the table %s', rolname, word, name)
  FROM me, (SELECT c.oid, format('%I.%I', nspname, relname) AS name
              FROM pg_class c JOIN schemas s ON s.oid = relnamespace WHERE relkind IN ('r', 'p', 'f', 'v', 'm')) AS every
       CROSS JOIN unnest(ARRAY['TRUNCATE', 'REFERENCES', 'TRIGGER']
                         || CASE WHEN current_setting('server_version_num')::int >= 170000 THEN ARRAY['MAINTAIN'] END) AS word
 WHERE has_table_privilege($2, every.oid, word)
    OR (word = 'REFERENCES' AND has_any_column_privilege($2, every.oid, 'REFERENCES'))
UNION ALL
SELECT format('the role %I has CREATE on the schema %I', rolname, nspname) FROM me, pg_namespace
 WHERE nspname !~ '^pg_(toast_)?temp_' AND has_schema_privilege($2, pg_namespace.oid, 'CREATE')
UNION ALL
SELECT format('the role %I has %s on the database %I', rolname, word, current_database())
  FROM me, unnest(ARRAY['CREATE', 'TEMP']) AS word WHERE has_database_privilege($2, current_database(), word)
UNION ALL
SELECT format('the role %I may change the parameter %s', rolname, parname)
  FROM me, pg_parameter_acl WHERE has_parameter_privilege($2, parname, 'SET, ALTER SYSTEM')
UNION ALL
SELECT format('the role %I can move rows to another tenant: UPDATE on %s.%I', rolname, name, attname)
  FROM me, tenants WHERE has_column_privilege($2, relid, attnum, 'UPDATE')
UNION ALL
SELECT format('the role %I can read %s.%I', rolname, name, attname)
  FROM me, tables JOIN pg_attribute ON attrelid = tables.oid
 WHERE relname = 'api_keys' AND attname IN ('hash', 'previous_hash') AND has_column_privilege($2, tables.oid, attnum, 'SELECT')
UNION ALL
SELECT format('the role %I has %s on public.gatepost_public, which only the owner may declare', rolname, word)
  FROM me, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE']) AS word
 WHERE CASE word WHEN 'DELETE' THEN has_table_privilege($2, to_regclass('public.gatepost_public'), word)
                 ELSE has_any_column_privilege($2, to_regclass('public.gatepost_public'), word) END
"""

# Row-level security of every table that holds tenants' rows.
_TABLES: Final = r"""
SELECT format('the table %s has %s', name, fault)
  FROM tables, LATERAL (VALUES
       ('rows of another server, which row-level security does not reach', relkind = 'f'),
       (format('no row-level security: run ALTER TABLE %s ENABLE ROW LEVEL SECURITY', name),
        relkind <> 'f' AND NOT relrowsecurity),
       (format('row-level security that does not bind its owner: run ALTER TABLE %s FORCE ROW LEVEL SECURITY', name),
        relkind <> 'f' AND NOT relforcerowsecurity),
       ('no policy', relkind <> 'f' AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = tables.oid)))
       AS faults (fault, found)
 WHERE found
UNION ALL
SELECT format('the policy %I on %s %s: %s', polname, name, fault, said)
  FROM policies, LATERAL (VALUES
       ('does not depend on the caller' || CASE polcmd WHEN 'r' THEN ' (public rows: gatepost_public_rows)' ELSE '' END,
        NOT open AND (said !~ 'current_setting\(''gatepost\.' OR said ~* '\mOR true\M'
        OR 'true' IN (pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)))),
       ('takes an empty setting for a caller: write NULLIF(current_setting(name, true), '''')',
        regexp_count(said, 'current_setting\(''gatepost\.')
        <> regexp_count(said, 'NULLIF\(current_setting\(''gatepost\.\w+''::text, true\), ''''::text\)')),
       ('looks at no column of the row, so a caller with the setting has all rows',
        NOT open AND said ~ 'current_setting\(''gatepost\.' AND NOT EXISTS (
            SELECT FROM pg_depend d WHERE d.classid = 'pg_policy'::regclass AND d.objid = policies.oid
                                      AND d.refclassid = 'pg_class'::regclass AND d.refobjid = polrelid AND d.refobjsubid > 0)))
       AS faults (fault, found)
 WHERE said <> '' AND found
UNION ALL
SELECT DISTINCT format('the table %s is partitioned by %I, which its policies use: one-statement reads can come back empty',
                       name, attname)
  FROM tables
  CROSS JOIN LATERAL pg_partition_tree(tables.oid) AS tree
  JOIN pg_partitioned_table p ON p.partrelid = tree.relid
  JOIN pg_attribute a ON a.attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
 WHERE relkind = 'p' AND pg_get_partkeydef(p.partrelid)
       ~ ('(^|\W)' || regexp_replace(quote_ident(attname), '(\W)', '\\\1', 'g') || '(\W|$)')
   AND EXISTS (SELECT FROM pg_depend d JOIN policies ON d.objid = policies.oid
                WHERE d.classid = 'pg_policy'::regclass AND d.refobjid = tables.oid AND d.refobjsubid = a.attnum)
"""

# What runs, or has run, with another role's rights.
_AROUND: Final = """
SELECT format('the view %s reads with its owner''s rights: set security_invoker', name) FROM relations c
 WHERE relkind = 'v'
   AND NOT EXISTS (SELECT FROM pg_options_to_table(reloptions) WHERE option_name = 'security_invoker' AND option_value::boolean)
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
UNION ALL
SELECT format('the role %I can access the materialised view %s, which no policy protects', rolname, name) FROM me, relations
 WHERE relkind = 'm'
UNION ALL
SELECT format('%s has the rule %I, which runs with its owner''s rights', name, rulename)
  FROM pg_rewrite JOIN relations c ON c.oid = ev_class
 WHERE rulename <> '_RETURN'
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
"""

# Every write to the audited tables leaves an entry, and the serving role cannot write to the log.
_AUDIT: Final = f"""
SELECT format('writes to the table public.%I are not audited: its trigger is missing or off', tables.name)
  FROM unnest({sql_array(AUDITED_TABLES)}) AS tables (name)
 WHERE (SELECT coalesce(bit_or(tgtype::int), 0) & 28 FROM pg_trigger
         WHERE tgrelid = to_regclass('public.' || tables.name) AND tgfoid = to_regprocedure('public.gatepost_audited()')
           AND tgtype & 1 = 1 AND tgenabled IN ('O', 'A') AND tgqual IS NULL) <> 28
UNION ALL
SELECT 'the audit log is not append-only: its trigger is missing or off'
 WHERE NOT EXISTS (SELECT FROM pg_trigger
                    WHERE tgrelid = to_regclass('public.audit_log') AND tgtype = 58 AND tgenabled IN ('O', 'A')
                      AND tgfoid = to_regprocedure('public.gatepost_append_only()'))
UNION ALL
SELECT format('the role %I has %s on the audit log', rolname, word)
  FROM me, tables, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE']) AS word
 WHERE tables.oid = to_regclass('public.audit_log')
   AND CASE word WHEN 'DELETE' THEN has_table_privilege($2, tables.oid, word)
                 ELSE has_any_column_privilege($2, tables.oid, word) END
"""  # noqa: S608

QUESTIONS: Final = (_ROLE, _HELPERS, _RIGHTS, _TABLES, _AROUND, _AUDIT)
READABLE: Final = "SELECT name FROM tables WHERE has_any_column_privilege($2, oid, 'SELECT') AND oid <> ALL ($3) "
# Every query takes the same arguments; this makes their types known where nothing else does, and adds no row.
USES_ARGUMENTS: Final = "UNION ALL SELECT NULL WHERE cardinality($1::text[]) < 0 AND $2::name IS NULL AND $3::oid[] IS NULL"

# Functions that run with their owner's rights and that the role ($2) may call, and those with a listed name ($1).
FUNCTIONS: Final = """
SELECT format('%I.%I(%s)', nspname, proname, (SELECT string_agg(format_type(t, NULL), ', ' ORDER BY nth)
                                                FROM unnest(proargtypes) WITH ORDINALITY AS types (t, nth))),
       pg_get_userbyid(proowner), array_to_string(proconfig, '; '), prosecdef
  FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace
 WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
   AND ((prosecdef AND has_schema_privilege($2::name, n.oid, 'USAGE')
         AND has_function_privilege($2::name, pg_proc.oid, 'EXECUTE'))
        OR proname = ANY ($1))
"""
