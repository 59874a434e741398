"""Checks the audience (`aud`) of Clerk's tokens against `clerk.audience`, or only observes what the check would refuse."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from server import CredentialRejected

from .settings import ClerkSettings

log = logging.getLogger("gatepost.clerk")
_LOG_SECONDS: Final = 60.0


def fault(claims: Mapping[str, Any], ours: frozenset[str], *, required: bool = False) -> str | None:
    """Returns what is wrong with the `aud` of a verified payload, or None. If `ours` is empty, nothing is checked.

    A token that names any audience must name one of ours, exactly. One that names none passes unless `required`.
    """
    if not ours:
        return None
    if "aud" not in claims:
        return "aud is missing" if required else None
    audience = claims["aud"]
    named = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(name, str) for name in named):
        return "aud is neither a string nor a list of strings"
    return "aud names none of ours" if ours.isdisjoint(named) else None


class MachineAudience:
    """The check for machine tokens: `clerk.require_audience` makes it stricter, `clerk.audience_mode` can make it observe only.

    While it observes, a token that the check would refuse is accepted, counted, and logged: one line a minute at most, without
    any of the token's content.
    """

    def __init__(self, settings: ClerkSettings) -> None:
        self._ours, self._required = settings.audience, settings.require_audience
        self._enforced = settings.audience_mode == "enforce"
        self._logged_at = float("-inf")
        self.observed = 0
        """How many tokens were accepted that the check would have refused."""

    def announce(self) -> None:
        """Log at startup that the check only observes, so that it is not left that way by mistake."""
        if not self._enforced:
            log.warning("clerk.audience_mode is observe: machine tokens for other audiences are accepted")

    def check(self, claims: Mapping[str, Any]) -> str | None:
        """Returns what is wrong with the `aud` while the check only observes: `observe` takes it if all else is right; or None.

        Raises CredentialRejected for a token of another audience where the check is enforced.
        """
        trouble = fault(claims, self._ours, required=self._required)
        if trouble is not None and self._enforced:
            raise CredentialRejected("token-audience", trouble)
        return trouble

    def observe(self, trouble: str | None, now: float) -> None:
        """Count and log a token that is accepted although `check` found `trouble`. `now` is in Unix seconds."""
        if trouble is None:
            return
        self.observed += 1
        if abs(now - self._logged_at) >= _LOG_SECONDS:
            self._logged_at = now
            fields = {"fault": trouble, "observed": self.observed}
            log.warning("a machine token for another audience was accepted (clerk.audience_mode)", extra={"fields": fields})
