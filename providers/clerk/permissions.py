"""The organisation permissions that a v2 session token packs into bit masks (`fea`, `o.per`, `o.fpm`), and back."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

log = logging.getLogger("gatepost.clerk")
_ORG_SCOPES: Final = frozenset({"o", "ou", "uo"})
_MASK: Final = re.compile(r"[0-9]{1,1000}")
_warned: set[str] = set()


class OddPermissions(ValueError):
    """The claims cannot be decoded at all (Clerk's own decoder throws here)."""


@lru_cache(maxsize=1024)  # the members of an organisation share their masks
def unpack(features: str, verbs: str, masks: str) -> tuple[str, ...]:
    """The permissions, as `org:<feature>:<verb>`, in the order of the features and then of the verbs.

    Mask i belongs to feature i, and its bit j (from the least significant) to verb j. Whether i counts all features
    or the organisation's alone, Clerk's own libraries do not agree. They agree whenever the organisation's come
    first; otherwise only what both readings grant is granted, because either alone can grant too much.
    """
    if not features or not verbs or not masks:
        return ()
    every = [_scope_and_slug(element) for element in features.split(",")]
    words = [verb.strip() for verb in verbs.split(",")]
    numbers = [_mask(mask.strip()) for mask in masks.split(",")]
    org = [slug for scope, slug in every if scope in _ORG_SCOPES]
    granted = _grants(org, numbers, words)
    if all(scope in _ORG_SCOPES for scope, _ in every[: len(org)]):
        return tuple(granted)
    _warn_once()
    mixed = [slug if scope in _ORG_SCOPES else None for scope, slug in every]
    by_all = frozenset(_grants(mixed, numbers, words))
    return tuple(name for name in granted if name in by_all)


def pack(permissions: Iterable[str]) -> tuple[str, str, str]:
    """`fea`, `per` and `fpm` for permissions of the form `org:<feature>:<verb>`. Raises ValueError for another form."""
    pairs = []
    for permission in permissions:
        feature, _, verb = permission.removeprefix("org:").rpartition(":")
        if not feature or not verb or "," in permission or permission != f"org:{feature}:{verb}":
            raise ValueError(f"a permission looks like org:invoices:read, not {permission!r}")
        pairs.append((feature, verb))
    features, verbs = list(dict.fromkeys(f for f, _ in pairs)), list(dict.fromkeys(v for _, v in pairs))
    granted = set(pairs)
    masks = (sum(1 << j for j, verb in enumerate(verbs) if (feature, verb) in granted) for feature in features)
    return ",".join(f"o:{feature}" for feature in features), ",".join(verbs), ",".join(map(str, masks))


def _grants(features: Sequence[str | None], masks: Sequence[int], verbs: Sequence[str]) -> list[str]:
    return [
        f"org:{feature}:{verb}"
        for feature, mask in zip(features, masks, strict=False)  # the shorter list ends the pairing
        if feature is not None
        for j, verb in enumerate(verbs)
        if mask >> j & 1
    ]


def _scope_and_slug(element: str) -> tuple[str, str]:
    scope, colon, slug = element.strip().partition(":")
    if not colon:
        raise OddPermissions("an element of fea has no scope")
    return scope, slug


def _mask(text: str) -> int:
    return int(text) if _MASK.fullmatch(text) else 0  # grants nothing, but keeps its place


def _warn_once() -> None:
    if not _warned:
        _warned.add("mixed")
        log.warning("Clerk names a user's feature before an organisation's; only permissions of both readings count")
