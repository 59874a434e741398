"""Verifies a token's signature with one of an issuer's keys."""

from __future__ import annotations

from typing import Final

from server import CredentialRejected

from .jwks import Keys
from .jws import Header, HeaderReader, Segments, decode

NO_SUCH_KEY: Final = "no such key"
"""The detail of the refusal of a token whose key id the issuer's keys do not have."""


async def verify(segments: Segments, keys: Keys, headers: HeaderReader) -> tuple[Header, int]:
    """Returns the header of a token with a valid signature, and the generation of the keys that verified it.

    Raises Malformed or CredentialRejected for any other token, Unavailable if the keys cannot be fetched.
    """
    header = headers.read(segments.header)
    signature = decode(segments.signature)
    key = keys.get(header.kid) or await keys.find(header.kid)
    generation = keys.generation()  # no await between here and the last use of the key
    if key is None:
        raise CredentialRejected("credential-rejected", NO_SUCH_KEY if header.kid else "kid is missing")
    if not key.verify(header.alg, f"{segments.header}.{segments.payload}".encode(), signature):
        raise CredentialRejected("credential-rejected", "bad signature")
    headers.remember(segments.header, header)
    return header, generation
