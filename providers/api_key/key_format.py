"""What a managed key looks like: `gp_<env>_<id>_<secret><checksum>`.

    gp_live_4Yb0sT9wKq2LmZ7d_…43 characters…0aBc1D

env        `live` for a key made in production, `test` for any other: for people and for scanners, not for us
id         16 characters of base62 that name the key in lists and logs; no secret
secret     43 characters of base62, more than 256 bits of chance
checksum   CRC32 of everything before it, in 6 characters of base62: for typos and leak scanners, never for security

All of it is one word to a double click, and lies outside Base64. Leak scanners look for PATTERN and then ask
`parse` (or compute the checksum themselves): what only looks like a key is told apart without asking anybody.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from typing import Final

PREFIX: Final = "gp_"
PATTERN: Final = r"gp_(?:live|test)_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}"
"""The documented regular expression for leak scanners."""

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_LENGTH, _SECRET_LENGTH, _CHECKSUM_LENGTH = 16, 43, 6
_KEY: Final = re.compile(r"gp_(live|test)_([0-9A-Za-z]{16})_[0-9A-Za-z]{49}\Z")


@dataclass(frozen=True, slots=True)
class Key:
    """A key as a whole. Its text is shown once and kept nowhere; `repr` does not show it."""

    id: str
    env: str
    text: str = field(repr=False)

    @property
    def digest(self) -> bytes:
        """What is stored and looked up in its place."""
        return digest_of(self.text)


def digest_of(text: str) -> bytes:
    """SHA-256. The secret is 256 bits of chance: a slow hash would protect nothing more, and would slow the server."""
    return hashlib.sha256(text.encode()).digest()


def environment(env: str) -> str:
    """The word in a key for the server's `env`."""
    return "live" if env == "production" else "test"


def make(env: str, id: str | None = None) -> Key:
    """A new key for the server's `env`; `id` keeps the name of one that is rotated."""
    named = id if id is not None else _chance(_ID_LENGTH)
    text = f"{PREFIX}{environment(env)}_{named}_{_chance(_SECRET_LENGTH)}"
    return Key(named, environment(env), text + checksum(text))


def parse(text: str) -> Key | None:
    """The key that this text is, or None where it is none: another form, or a checksum that does not fit."""
    match = _KEY.match(text)
    if match is None or checksum(text[:-_CHECKSUM_LENGTH]) != text[-_CHECKSUM_LENGTH:]:
        return None
    return Key(match[2], match[1], text)


def checksum(text: str) -> str:
    """CRC32 in base62 with leading zeros."""
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CHECKSUM_LENGTH):
        number, rest = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[rest] + digits
    return digits


def _chance(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
