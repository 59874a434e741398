"""The helper roles, definer functions and audited tables of schema.sql, which the safety checks compare with the database."""

from __future__ import annotations

from typing import Final

HELPER_ROLES: Final = ("gatepost_auth", "gatepost_sync", "gatepost_audit")
"""The roles that own the definer functions. Their policies may be open because no one can log in as them or be a member."""

DEFINER_FUNCTIONS: Final[dict[str, str]] = {
    "public.key_by_hash(bytea)": "gatepost_auth",
    "public.touch_keys(text[], timestamp with time zone[])": "gatepost_auth",
    "public.key_owner_ended(text, text)": "gatepost_auth",
    "public.keep_stream_ticket(bytea, text, text, text, integer, integer)": "gatepost_auth",
    "public.take_stream_ticket(bytea, text)": "gatepost_auth",
    "public.apply_clerk_event(text, text, timestamp with time zone, jsonb, interval, interval)": "gatepost_sync",
    "public.apply_sign_out(text, text, timestamp with time zone, text, jsonb, interval, interval)": "gatepost_sync",
    "public.revocations_since(xid8)": "gatepost_sync",
    "public.revocations_page(xid8, text, text, integer)": "gatepost_sync",
    "public.revoke_access(text, text, interval)": "gatepost_sync",
    "public.sweep_ended(integer)": "gatepost_sync",
    "public.prune_sync()": "gatepost_sync",
    "public.prune_idempotency(integer)": "gatepost_sync",
    "public.replay_clerk_events(timestamp with time zone, text, integer, interval)": "gatepost_sync",
    (
        "public.audit_denied(timestamp with time zone[], text[], text[], text[], text[], text[], text[], text[], "
        "integer[], text[])"
    ): "gatepost_audit",
    "public.audit_prune(integer, integer)": "gatepost_audit",
    "public.gatepost_audited()": "gatepost_audit",
}
"""Every function that may run with another role's rights, and its owner. A definer function that is not listed is a problem."""

TRIGGER_FUNCTIONS: Final[dict[str, str]] = {
    "public.gatepost_key_lineage()": "gatepost_auth",
    "public.gatepost_key_told()": "gatepost_sync",
    "public.gatepost_membership_told()": "gatepost_sync",
}
"""The definer functions that only our triggers run: no role can call them, so the checks need not look at them."""

AUDITED_TABLES: Final = ("data", "org_data", "invoices", "api_keys")
"""The tables of the schema `public` whose writes leave an entry in the audit log."""

SEARCH_PATH: Final = "search_path=pg_catalog, pg_temp"
"""What every definer function must pin, as `pg_proc.proconfig` shows it."""


def sql_array(names: tuple[str, ...]) -> str:
    """Returns `ARRAY['a', 'b']`. For names that are constants of this program: it does not quote them."""
    return f"ARRAY[{', '.join(repr(name) for name in names)}]"
