"""Names the environment variables of a provider that are set and that nothing reads, such as misspelt ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from server import nearest_name

_SERVICE_LINK: Final = re.compile(
    r"[A-Z0-9_]*_?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)?)\Z"
)
"""What Kubernetes sets for a service, behind the prefix."""


def unread(
    environ: Mapping[str, str], prefix: str, known: Collection[str], others: re.Pattern[str] | None = None
) -> list[tuple[str, str]]:
    """Returns each variable that begins with `prefix`, has a value, and is not one of `known`, and the nearest known one or "".

    known    the variables that are read; each may also end in `_FILE`
    others   matches those that belong to another program
    """
    found = []
    for name in sorted(environ):
        bare = name.removesuffix("_FILE")
        if not name.startswith(prefix) or not environ[name].strip() or bare in known:
            continue
        if _SERVICE_LINK.match(name, len(prefix)) or (others is not None and others.match(bare)):
            continue
        # Without the prefix, which all of them have: it would make any two of them alike.
        meant = {one.partition(prefix)[2]: one for one in known if prefix in one}
        near = nearest_name(bare.removeprefix(prefix), meant)
        found.append((name, meant[near] + name[len(bare) :] if near else ""))
    return found
