"""The rules for the names in an identity: its ids, and its role and permissions in an organisation."""

from __future__ import annotations

from typing import Final, TypeGuard

_PREFIX: Final = "org:"


def is_plain_text(value: object) -> TypeGuard[str]:
    """Is this a str of 1 to 255 printable characters, not only spaces? The rule for user and organisation ids."""
    # isprintable refuses NUL, newlines and lone surrogates: they cannot be stored, and must not appear in a log line.
    return isinstance(value, str) and value != "" and len(value) <= 255 and value.isprintable() and not value.isspace()


def with_org_prefix(name: str) -> str:
    """Return the full name of a role or permission: `admin`, `org:admin` and `org:org:admin` become `org:admin`. Case counts.

    An empty name becomes `org:`, which matches no role and no permission.
    """
    while name.startswith(_PREFIX):
        name = name.removeprefix(_PREFIX)
    return _PREFIX + name


def names_something(name: object) -> bool:
    """Is this the name of a role or permission? `org:` alone is not."""
    return isinstance(name, str) and with_org_prefix(name) != _PREFIX
