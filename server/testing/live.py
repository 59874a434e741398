"""The conformance checks for live answers: when a credential ends, and whether it can be rechecked while a stream is open."""

from __future__ import annotations

import time

import pytest

from ..auth.identity import Identity
from ..auth.rejected import CredentialRejected
from ..http.errors import Unavailable
from .stage import ProviderCase, opened


class LiveContract:
    """A test of `server.testing_provider.ProviderContract`."""

    pytestmark = pytest.mark.asyncio

    async def test_an_open_stream_can_be_checked_again(self, provider_case: ProviderCase) -> None:
        """`expires_at` is in the future, and `recheck`, if there is one, returns the same caller."""
        async with opened(provider_case) as provider:
            for headers in provider_case.known:
                known = await provider.answer(headers)
                assert isinstance(known, Identity), "a known caller is not known"
                assert known.expires_at is None or known.expires_at > time.time(), "expires_at of a known caller is past"
                if provider.recheck is None:
                    continue
                try:
                    again = await provider.recheck(known)
                except (CredentialRejected, Unavailable) as error:
                    raise AssertionError(f"recheck of a known caller raises {type(error).__name__}") from None
                assert isinstance(again, Identity), f"recheck returns {type(again).__name__}, not an Identity"
                same = ("token_type", "user_id", "org_id", "org_role", "org_permissions", "scopes", "key_id")
                assert all(getattr(again, name) == getattr(known, name) for name in same), "recheck returns another caller"
