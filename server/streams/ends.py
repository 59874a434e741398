"""Why a live answer ends: the reason that is sent to the client, and the close code of a WebSocket."""

from __future__ import annotations

from typing import Final, NamedTuple

from ..auth.identity import Identity


class End(NamedTuple):
    """A reason, as in `event: end` and a WebSocket's close frame; `code` is None if the client is sent neither."""

    reason: str
    code: int | None


TOKEN_EXPIRED: Final = End("token-expired", 4401)
KEY_EXPIRED: Final = End("key-expired", 4401)
SESSION_REVOKED: Final = End("session-revoked", 4401)
KEY_REVOKED: Final = End("key-revoked", 4401)
DRAINING: Final = End("draining", 1001)
"""Also used while it is unknown whether access has ended: the feed of revocations, or a provider, is unavailable."""
TOO_LONG: Final = End("too-long", 4408)
TOO_SLOW: Final = End("too-slow", 4408)

FINISHED: Final = End("finished", None)
"""The handler has returned."""
FAILED: Final = End("error", None)
"""The handler has raised an exception."""
GONE: Final = End("client", None)
"""The client has closed the connection, or does not answer."""
HEAD: Final = End("head", None)
"""A HEAD request, which holds nothing open."""


def expired(identity: Identity) -> End:
    """Returns the end of a credential that has expired."""
    return KEY_EXPIRED if identity.token_type in ("api_key", "clerk_api_key") else TOKEN_EXPIRED
