"""Checks the form of Clerk's secret key, and names what was probably set by mistake in its place."""

from __future__ import annotations

import re
from typing import Final

_FORM: Final = re.compile(r"sk_(?:test|live)_[\x21-\x7e]+")
_PLACEHOLDER: Final = re.compile(r"sk_(?:test|live)_(?:[.*x\u2022\u2026]+|<.*>|\[.*\]|.*\.\.\.|your.*)", re.IGNORECASE)


def checked_secret_key(name: str, value: object) -> str | None:
    """Returns the key, None if there is none. Raises ValueError that begins with `name` and holds nothing of the value."""
    if value is None:
        return None
    text = value if isinstance(value, str) else ""
    if _PLACEHOLDER.fullmatch(text):
        raise ValueError(f"{name} is a placeholder: copy the key from Clerk's dashboard")
    if _FORM.fullmatch(text):
        return text
    raise ValueError(f"{name} {_complaint(text) if value != '' else 'is set but empty'}")


def _complaint(text: str) -> str:
    rule = "must look like sk_test_... or sk_live_..."
    if text.startswith("pk_"):
        return f"{rule}: this is a publishable key"
    if text.startswith("whsec_"):
        return f"{rule}: this is a webhook's signing secret"
    if text.startswith("-----BEGIN"):
        return f"{rule}: this is a PEM, which belongs into CLERK_JWT_KEY"
    if any(blank in text for blank in " \t\r\n"):
        return f"{rule}, without blanks or line ends in it"
    return rule
