"""The SQL of the routes and the commands for API keys."""

COLUMNS = """id, name, CASE WHEN user_id IS NULL THEN 'organization' ELSE 'user' END AS owner, user_id, org_id, org_role,
             org_permissions, scopes, created_by, created_by_key, created_at, expires_at, previous_expires_at, last_used_at"""
# The keys of the user ($1), and the organisation's own keys ($2, NULL unless the caller administers it).
MINE = "(user_id = $1 OR (user_id IS NULL AND org_id = $2))"
PAGE = f"""SELECT {COLUMNS} FROM api_keys WHERE {MINE} AND revoked_at IS NULL AND (created_at, id) < ($3, $4)
           ORDER BY created_at DESC, id DESC LIMIT $5"""  # noqa: S608 - the SQL is made of constants of this file
INSERT = f"""INSERT INTO api_keys (id, hash, name, user_id, org_id, org_role, org_permissions, scopes, created_by,
                                   created_by_key, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING {COLUMNS}"""  # noqa: S608
ONE = f"SELECT {COLUMNS} FROM api_keys WHERE {MINE} AND id = $3 AND revoked_at IS NULL"  # noqa: S608
# A trigger keeps the previous hash until previous_expires_at.
ROTATE = f"""UPDATE api_keys SET hash = $4, rotated_by_key = $6,
                                 previous_expires_at = CASE WHEN $5 > 0 THEN now() + make_interval(secs => $5) END
             WHERE {MINE} AND id = $3 AND revoked_at IS NULL RETURNING {COLUMNS}"""  # noqa: S608
REVOKE = f"""UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE {MINE} AND id = $3
             RETURNING id, name, revoked_at"""  # noqa: S608
# Locked, so that the key cannot be revoked while it creates another.
MAKER = "SELECT expires_at, depth FROM api_keys WHERE id = $1 AND revoked_at IS NULL FOR SHARE"
