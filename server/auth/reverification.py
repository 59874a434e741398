"""Step-up: decides whether the caller verified a factor recently enough (Clerk's `fva` claim)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from ..http.errors import Forbidden

Reverification: TypeAlias = "str | Mapping[str, Any]"
"""A preset's name, or `{"level": "first_factor"|"second_factor"|"multi_factor", "afterMinutes": 1..99999}`."""

PRESETS: Final[Mapping[str, tuple[str, float]]] = {
    "strict_mfa": ("multi_factor", 10),
    "strict": ("second_factor", 10),
    "moderate": ("second_factor", 60),
    "lax": ("second_factor", 1440),
}
LEVELS: Final = frozenset({"first_factor", "second_factor", "multi_factor"})


def level_and_minutes(asked: object) -> tuple[str, float] | None:
    """A requirement as (level, minutes); None where it is malformed."""
    if isinstance(asked, str):
        return PRESETS.get(asked)
    if not isinstance(asked, Mapping) or set(asked) != {"level", "afterMinutes"}:
        return None
    level, minutes = asked["level"], asked["afterMinutes"]
    if not isinstance(level, str) or level not in LEVELS or not _is_age(minutes) or not 0 < minutes <= 99999:
        return None
    return level, float(minutes)


def is_fresh(fva: object, asked: object) -> bool:
    """Was the factor of the requirement `asked` verified within its minutes?

    `fva` is `[minutes since the first factor, minutes since the second]`, -1 = not enrolled. An age that equals the
    limit is stale. A malformed claim or requirement is not fresh.
    """
    required = level_and_minutes(asked)
    if required is None or not isinstance(fva, list | tuple) or len(fva) != 2:
        return False
    first, second = fva
    if not all(_is_age(age) and (age == -1 or age >= 0) for age in fva) or first == second == -1:
        return False
    level, minutes = required
    fresh_first, fresh_second = bool(first != -1 and first < minutes), bool(second != -1 and second < minutes)
    if level == "first_factor":
        return fresh_first
    if level == "second_factor":
        return fresh_first if second == -1 else fresh_second
    return fresh_first and (second == -1 or fresh_second)


def _is_age(value: object) -> bool:
    # Compared instead of isfinite(), which fails for an integer larger than any float (such an integer is no age).
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value < 1e300


def step_up(asked: Reverification) -> Forbidden:
    """The 403 for a missing step-up: Clerk's body for its hook `useReverification`, and the challenge of RFC 9470 3."""
    level = level_and_minutes(asked)
    seconds = round(level[1] * 60) if level else 0
    clerk = {"type": "forbidden", "reason": "reverification-error", "metadata": {"reverification": asked}}
    return Forbidden(
        "reverification",
        headers={"WWW-Authenticate": f'Bearer error="insufficient_user_authentication", max_age={seconds}'},
        more={"clerk_error": clerk},
    )
