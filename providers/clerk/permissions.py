"""Unpacks the organisation permissions from the bit masks of a v2 session token (`fea`, `o.per`, `o.fpm`), and packs them."""

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
    """The claims cannot be decoded (Clerk's own decoder throws here, too)."""


@lru_cache(maxsize=1024)  # the members of an organisation share their masks
def unpack(features: str, verbs: str, masks: str) -> tuple[str, ...]:
    """Returns the permissions, as `org:<feature>:<verb>`, in the order of the features and then of the verbs.

    Mask i belongs to feature i, and its bit j (from the least significant) to verb j. Clerk's own libraries disagree whether i
    counts all features or only the organisation's. They agree if the organisation's features come first; otherwise a permission
    is granted only if both readings grant it, because either alone can grant too much. Raises OddPermissions.
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
    """Returns `fea`, `per` and `fpm` for permissions of the form `org:<feature>:<verb>`. Raises ValueError for another form."""
    pairs = []
    for permission in permissions:
        feature, _, verb = permission.removeprefix("org:").rpartition(":")
        if not feature or not verb or "," in permission or permission != f"org:{feature}:{verb}":
            raise ValueError(f"a permission must have the form org:invoices:read, not {permission!r}")
        pairs.append((feature, verb))
    features, verbs = list(dict.fromkeys(f for f, _ in pairs)), list(dict.fromkeys(v for _, v in pairs))
    granted = set(pairs)
    masks = (sum(1 << j for j, verb in enumerate(verbs) if (feature, verb) in granted) for feature in features)
    return ",".join(f"o:{feature}" for feature in features), ",".join(verbs), ",".join(map(str, masks))


def _grants(features: Sequence[str | None], masks: Sequence[int], verbs: Sequence[str]) -> list[str]:
    return [
        f"org:{feature}:{verb}"
        for feature, mask in zip(features, masks, strict=False)  # surplus elements of the longer list are ignored
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
        log.warning("a token lists a user's feature before an organisation's; only permissions that both readings grant count")
