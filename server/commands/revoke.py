"""End a session, one token (by its jti), or all present tokens of a user, in every process within a second.

The revocation is recorded in the same table as those of an issuer's events, and the audit log names the operator.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from datetime import datetime, timedelta
from typing import Final

from ..auth.names import is_plain_text
from ..plugins.loader import Plugins
from ..plugins.providers import LoadedProvider
from ..schema.connection_mistakes import URL, connected
from ..schema.startup import beside_running_server
from ..settings.setting import ConfigError, StartFailed
from ..settings.sources import Settings

KEEP: Final = timedelta(days=366)
"""How long a revocation is kept: longer than the longest life of an accepted token by default (`max_token_seconds`)."""
_NO_FUNCTION: Final = "42883"  # SQLSTATE: undefined_function
_REVOKE: Final = "SELECT revoke_access($1, $2, $3)"
_ENDED: Final = {
    "jti": "the token {!r}",
    "session": "every token of the session {!r}",
    "user": "every token of the user {!r} that was issued until {}. API keys stay valid; sign the user out at the issuer too",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--jti", metavar="J", help="the id of one token: its claim jti")
    what.add_argument("--session", metavar="S", help="a session: the claim sid of its tokens")
    what.add_argument("--user", metavar="U", help="a user, a machine (mch_...) or a client: the tokens issued until now")
    parser.add_argument("--issuer", metavar="I", help="the issuer of the id; needed if its ids have a namespace")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Record one revocation and print what ends. Returns 0.

    Raises ConfigError for an id that no token can have and for an unknown issuer, Unavailable if the database cannot be
    reached, StartFailed if no server runs on the embedded Postgres.
    """
    kind = "jti" if args.jti is not None else "session" if args.session is not None else "user"
    given = getattr(args, kind)
    if not is_plain_text(given):
        raise ConfigError(f"revoke: --{kind} must be 1 to 255 printable characters")
    subject = given if args.issuer is None else _subject(settings, kind, args.issuer, given)
    at = asyncio.run(_record(settings, kind, subject))
    if args.json:
        print(json.dumps({"kind": kind, "subject": subject, "revoked_at": at.isoformat(), "until": (at + KEEP).isoformat()}))
    else:
        print(f"revoked: {_ENDED[kind].format(subject, f'{at:%Y-%m-%d %H:%M:%S} UTC')}")
    return 0


def _subject(settings: Settings, kind: str, issuer: str, given: str) -> str:
    """Returns the id as the server knows it for a subject of this issuer. Raises ConfigError for an unknown issuer."""
    plugins = Plugins(settings)
    offers = plugins.offers()
    providers = [plugins.provider(name, offers) for name in settings.words("providers")]
    for one in providers:
        if issuer in one.issuers:
            return _by(one, kind, issuer, given)
    known = sorted(name for one in providers for name in one.issuers)
    raise ConfigError(f"revoke: no provider has the issuer {issuer!r}; known: {', '.join(known) or 'none'}")


def _by(provider: LoadedProvider, kind: str, issuer: str, given: str) -> str:
    try:
        return given if provider.subject_of is None else str(provider.subject_of(kind, issuer, given))
    except ValueError as error:
        raise ConfigError(f"revoke: --{kind}: {error}") from None


async def _record(settings: Settings, kind: str, subject: str) -> datetime:
    url = settings.get("database.url")
    connect = {"dsn": url} if url else beside_running_server(settings)
    if connect is None:
        raise StartFailed("no server is running on the embedded Postgres here; start it first, or set DATABASE_URL")
    async with connected(connect, URL) as connection:
        try:
            at: datetime = await connection.fetchval(_REVOKE, kind, subject, KEEP)
        except Exception as error:
            if getattr(error, "sqlstate", None) == _NO_FUNCTION:
                raise ConfigError("revoke: the database has an older schema: run `python -m server migrate`") from None
            raise
    return at
