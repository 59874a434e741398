"""Checks that the sender of a token holds the key that it is bound to: Demonstrating Proof of Possession (RFC 9449)."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aiohttp import hdrs, web

from server import CredentialRejected, House, Unavailable

from .dpop_nonce import SHORTEST, Nonces
from .dpop_proof import InvalidProof, Proof, ProofReader, base64url_of
from .dpop_settings import DpopSettings
from .dpop_target import Address
from .settings import IssuerSettings

HEADER: Final = "DPoP"
_PROVED: Final = web.RequestKey("dpop.proved", bytes)
log = logging.getLogger("gatepost.dpop")
_NO_ADDRESS: Final = (
    "dpop: resource.url is not set, so proofs must name the address of this server's own socket; behind a proxy none does"
)


def bound_token(request: web.Request) -> str | None:
    """Returns the token after `DPoP` (RFC 9449 7.1: the scheme in any case) and exactly one space; None without one."""
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(" ")
    return token if scheme.lower() == "dpop" and token else None


class DpopGuard:
    """Checks proofs for all issuers: the same proof is refused the second time, whichever issuer the token is from."""

    def __init__(self, issuers: Sequence[IssuerSettings], secret: str | None, clock: Callable[[], float]) -> None:
        """`secret` is the setting `dpop_nonce_secret`. Raises ValueError if an issuer needs it and it is missing."""
        given = {one.issuer: one.dpop for one in issuers if one.dpop is not None}
        self._readers = {issuer: ProofReader(dpop.algorithms) for issuer, dpop in given.items()}
        self.algorithms: Final = list(dict.fromkeys(alg for dpop in given.values() for alg in dpop.algorithms))
        if secret and len(secret) < SHORTEST:
            raise ValueError(f"oidc.dpop_nonce_secret must have at least {SHORTEST} characters")
        if not secret and (needy := [issuer for issuer, dpop in given.items() if dpop.nonce]):
            raise ValueError(f"oidc.issuers {needy[0]!r}: dpop_nonce needs oidc.dpop_nonce_secret")
        self._clock = clock
        self._nonces = Nonces(secret, clock) if secret else None
        self._house: House | None = None
        self._address = Address(None)

    async def open(self, house: House) -> None:
        """Take the public address and the store of used proofs from `house`. Raises ValueError for a malformed address."""
        self._address, self._house = Address(house.resource_url), house
        if house.resource_url is None and house.env == "production":
            log.warning(_NO_ADDRESS)

    @property
    def challenge(self) -> str:
        """Returns the challenge for a request without a proof, sent beside that of `Bearer` (RFC 9449 7.2)."""
        return f'DPoP algs="{" ".join(self.algorithms)}"'

    def rejection(
        self, reason: str, detail: str, *, error: str = "invalid_dpop_proof", headers: Mapping[str, str] | None = None
    ) -> CredentialRejected:
        """Returns the rejection whose 401 has the challenge of RFC 9449 7.1 with this `error`."""
        challenge = f'DPoP error="{error}", algs="{" ".join(self.algorithms)}"'
        return CredentialRejected(reason, detail, challenge=challenge, headers=headers)

    def shown(self, request: web.Request) -> str:
        """Returns the text of the only proof in a request. Raises CredentialRejected if there is none, or more than one."""
        shown = request.headers.getall(HEADER, ())
        if len(shown) == 1:
            return shown[0]
        raise self.rejection("proof-rejected" if shown else "proof-missing", f"{len(shown)} headers DPoP instead of one")

    async def check(self, request: web.Request, digest: bytes, key: str | None, settings: IssuerSettings) -> None:
        """Check the proof of a request whose token was shown under the scheme `DPoP`. Call it for every request.

        digest     the SHA-256 of the token's text (32 bytes)
        key        what `binding.bound_key` returned for the verified token
        settings   those of the token's issuer
        Raises CredentialRejected; Unavailable where it is not known whether the proof was used before.
        """
        if request.get(_PROVED) == digest:
            return  # the same request again: the server asks about the credential of a stream that is still open
        dpop = settings.dpop
        if dpop is None:
            raise self.rejection("credential-rejected", "dpop is off for this issuer", error="invalid_token")
        if key is None:  # RFC 9449 7.1: the scheme is for tokens that are bound
            raise self.rejection("token-unbound", "the token is not bound to a key", error="invalid_token")
        try:
            proof = self._readers[settings.issuer].read(self.shown(request), key)
        except InvalidProof as error:
            raise self.rejection("proof-rejected", str(error)) from None
        self._check_request(request, proof, digest)
        self._check_time(proof, dpop)
        await self._check_first(proof, key, dpop)
        request[_PROVED] = digest

    def _check_request(self, request: web.Request, proof: Proof, digest: bytes) -> None:
        """Raise unless the proof is for this method, this URI and this token (RFC 9449 4.3, steps 8, 9 and 12)."""
        if proof.htm != request.method:
            raise self.rejection("proof-target", "htm is another method")
        if not self._address.is_of(proof.htu, request):
            raise self.rejection("proof-target", "htu is another URI")
        if not hmac.compare_digest(proof.ath.encode("utf-8", "surrogatepass"), base64url_of(digest).encode()):
            raise self.rejection("proof-token", "ath is another token's")

    def _check_time(self, proof: Proof, dpop: DpopSettings) -> None:
        """Raise unless it is recent, by its own time and by this server's nonce (RFC 9449 4.3, steps 10 and 11)."""
        now = self._clock()
        if abs(now - proof.issued) > dpop.seconds:
            raise self.rejection("proof-expired", "iat is further from this server's clock than dpop_seconds")
        if proof.expires is not None and proof.expires <= now - dpop.seconds:
            raise self.rejection("proof-expired", "exp is past")
        if proof.not_before is not None and proof.not_before > now + dpop.seconds:
            raise self.rejection("proof-expired", "nbf is to come")
        if dpop.nonce and (self._nonces is None or proof.nonce is None or not self._nonces.valid(proof.nonce)):
            headers = {"DPoP-Nonce": self._nonces.make()} if self._nonces is not None else None
            raise self.rejection("proof-nonce", "nonce is missing or old", error="use_dpop_nonce", headers=headers)

    async def _check_first(self, proof: Proof, key: str, dpop: DpopSettings) -> None:
        """Raise if the `jti` was used with this key before, while a proof with it could still be valid (RFC 9449 11.1)."""
        if self._house is None:
            raise Unavailable("the provider is not open")
        left = proof.issued + dpop.seconds - self._clock()
        if not await self._house.first_use(f"oidc/dpop/{key}/{proof.jti}", left + 5):
            raise self.rejection("proof-replayed", "jti was used before")
