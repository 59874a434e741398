"""The rejection of a credential: raised by providers, answered by the gate with a 401."""

from __future__ import annotations

from collections.abc import Mapping


class CredentialRejected(Exception):
    """Raised by a provider for a bad credential of its own kind: the response is a 401, and no other provider is asked.

    reason   a slug of lower-case words joined by hyphens, sent to the client. It must be `credential-rejected` until a
             signature is verified: an unknown client must not learn which check failed
    detail   for the log only; it must not contain the credential
    challenge, headers   the `WWW-Authenticate` of the 401 (RFC 9110 11.6.1) if not `Bearer`, and further headers
    """

    def __init__(
        self,
        reason: str = "credential-rejected",
        detail: str = "",
        *,
        challenge: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.challenge, self.headers = reason, detail, challenge, headers
