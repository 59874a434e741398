"""The part of the conformance kit about a provider's optional `reads` and `recall`.

They let the gate take a shortcut. It must not let in a caller, or give a caller an identity, that `authenticate` would not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import pytest

from ..auth.identity import Identity
from ..auth.rejected import CredentialRejected
from .stage import Headers, Opened, ProviderCase, opened


class RecallContract:
    """Two tests of `server.testing_provider.ProviderContract`. A provider without `recall` and `reads` passes them."""

    pytestmark = pytest.mark.asyncio

    async def test_recall_never_contradicts_authenticate(self, provider_case: ProviderCase) -> None:
        """Before a credential was verified, afterwards, and with every other caller in memory."""
        case = provider_case
        async with opened(case) as provider:
            for _ in range(2):
                for headers in [{}, *case.not_mine]:
                    got = await _recalled(provider, headers)
                    assert got is None, (
                        f"another provider's credential, and recall returns {_name(got)}: that provider is never asked"
                    )
                for headers in case.bad:
                    for _ in range(2):
                        got = await _recalled(provider, headers)
                        assert got is None or isinstance(got, CredentialRejected), (
                            f"a bad credential is recalled as {_name(got)}"
                        )
                        await provider.answer(headers)
                for headers in case.known:
                    early, proven = await _recalled(provider, headers), await provider.answer(headers)
                    for got in (early, await _recalled(provider, headers)):
                        assert got is None or isinstance(got, Identity), f"a known caller is recalled as {_name(got)}"
                        assert got is None or _all(got) == _all(proven), "recall returns another identity than authenticate"

    async def test_reads_names_the_headers_that_it_reads(self, provider_case: ProviderCase) -> None:
        """Without a header of `reads` the gate does not ask the provider: a credential in another header would be ignored."""
        case = provider_case
        async with opened(case) as provider:
            if provider.reads is None:
                return
            if isinstance(provider.reads, str) or not isinstance(provider.reads, Iterable):
                raise AssertionError("reads is not a list of header names")
            reads = {str(name).lower() for name in provider.reads}
            for headers in [*case.known, *case.bad]:
                assert reads & {name.lower() for name in headers}, (
                    f"it takes a credential from {', '.join(headers)}: not in reads"
                )
                for name, value in headers.items():
                    got = await provider.answer({name: value}) if name.lower() not in reads else None
                    assert not isinstance(got, Identity | CredentialRejected), (
                        f"it judges by {name} alone, which is not in reads"
                    )


async def _recalled(provider: Opened, headers: Headers) -> object:
    """What `recall` returns for these headers, or the CredentialRejected that it raises."""
    async with provider.request(headers) as request:
        try:
            got = provider.recall(request)
        except CredentialRejected as rejected:
            return rejected
        except Exception as error:
            raise AssertionError(f"recall raised {type(error).__name__}: it must return None if it does not know") from None
    if inspect.iscoroutine(got):
        got.close()
        raise AssertionError("recall is async: the gate does not wait for it")
    return got


def _name(got: object) -> str:
    return type(got).__name__


def _all(got: object) -> tuple[Any, ...]:
    """Everything in an identity that access depends on."""
    assert isinstance(got, Identity), f"a known caller got {_name(got)}, not an Identity"
    rights = tuple(got.org_permissions or ()), tuple(got.scopes or ()), got.pending
    return got.provider, got.token_type, got.user_id, got.org_id, got.org_role, got.session_id, got.key_id, *rights
