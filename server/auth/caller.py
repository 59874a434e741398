"""Which caller an identity counts as, wherever requests, turns and database connections are counted."""

from __future__ import annotations

from typing import Final

from .identity import Identity

_KEY: Final = "caller.key"


def caller_key(identity: Identity) -> str:
    """The caller that this identity counts as: its user, else its organisation, else its key, else its provider.

    All credentials of one user are one caller, in every organisation: sessions, tokens and keys. All keys of one organisation
    are one caller, so that a key that creates keys gains nothing. Ids of users and organisations are unique across providers
    (their namespaces see to that), ids of keys are not. The text is computed once for each identity.
    """
    return identity.derived.get(_KEY) or _computed(identity)


def _computed(identity: Identity) -> str:
    if identity.user_id is not None:
        key = f"user/{identity.user_id}"
    elif identity.org_id is not None:
        key = f"org/{identity.org_id}"
    elif identity.key_id is not None:
        key = f"key/{identity.provider}/{identity.key_id}"
    else:
        key = f"provider/{identity.provider}"
    identity.derived[_KEY] = key
    return key
