"""Work outside a request: for which one tenant it is done, and as whom the audit log records it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ..auth.names import is_plain_text

_ACTOR: Final = re.compile(r"([a-z][a-z0-9_-]{0,31}):\S{1,200}\Z")
_TAKEN: Final = frozenset({"anonymous", "issuer", "key", "operator", "org", "system", "user"})


def work_of(
    user_id: str | None, org_id: str | None, actor: object, providers: Iterable[str] = (), namespaces: Iterable[str] = ()
) -> tuple[tuple[str, str, str], tuple[str, str], str]:
    """Returns (scope, writer, whose connections are counted) for this tenant and this actor. Raises ValueError.

    providers    the names of the providers, which the audit log shows for callers without a user
    namespaces   the prefixes of the providers' user ids: no actor may look like one of these users

    There is no scope for all tenants and none of an administrator. All work of one kind (the part of the actor before the
    colon) counts as one caller: together it has at most half of the connections.
    """
    if user_id is None and org_id is None:
        raise ValueError("name the tenant: user_id, org_id or both; there is no scope for all tenants")
    for word, value in (("user_id", user_id), ("org_id", org_id)):
        if value is not None and not is_plain_text(value):
            raise ValueError(f"{word} must be 1 to 255 characters of printable text, or None")
    if not is_plain_text(actor) or (found := _ACTOR.match(actor)) is None:
        raise ValueError("actor must be a kind and a name, such as job:nightly: [a-z][a-z0-9_-]* of at most 32 characters, a"
                         " colon, and 1 to 200 characters of printable text without blanks")  # fmt: skip
    kind = found[1]
    if kind in _TAKEN or kind in providers or any(prefix and actor.startswith(prefix) for prefix in namespaces):
        raise ValueError(f"actor must not begin with {kind!r}, which names a caller or the server itself")
    return (user_id or "", org_id or "", ""), (actor, ""), f"work/{kind}"
