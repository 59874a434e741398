"""Makes and checks the nonces of DPoP proofs (RFC 9449 8): every process with the same secret accepts those of all others."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from binascii import Error
from collections.abc import Callable
from typing import Final

SECONDS: Final = 300
"""How long a nonce is valid."""
SHORTEST: Final = 32
"""The shortest permitted secret, in characters."""
_TIME: Final = struct.Struct(">Q")
_MAC_BYTES: Final = 16
_LENGTH: Final = 32


class Nonces:
    """A nonce is the time at which it was made (Unix seconds) and a MAC of it (HMAC-SHA-256, 128 bits): nothing is stored."""

    def __init__(self, secret: str, clock: Callable[[], float]) -> None:
        self._key, self._clock = hashlib.sha256(b"gatepost dpop nonce\n" + secret.encode()).digest(), clock

    def make(self) -> str:
        """Returns a new nonce of 32 characters."""
        time = _TIME.pack(int(self._clock()))
        return base64.urlsafe_b64encode(time + self._mac(time)).decode()

    def valid(self, nonce: str) -> bool:
        """Whether it was made with this secret in the last 300 seconds; the clocks of two servers may differ by 5."""
        try:
            raw = base64.b64decode(nonce, b"-_", validate=True) if len(nonce) == _LENGTH else b""
        except (Error, ValueError):
            return False
        if len(raw) != _TIME.size + _MAC_BYTES or not hmac.compare_digest(raw[_TIME.size :], self._mac(raw[: _TIME.size])):
            return False
        (made,) = _TIME.unpack(raw[: _TIME.size])
        return bool(-5 <= self._clock() - made <= SECONDS)

    def _mac(self, time: bytes) -> bytes:
        return hmac.digest(self._key, time, "sha256")[:_MAC_BYTES]
