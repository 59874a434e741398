"""What the operator should know at startup about variables of this provider's name, which nothing reads."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final

from ..jwt.variables import unread

_KNOWN: Final = ("GATEPOST_OIDC_DPOP_NONCE_SECRET",)
_LOG: Final = logging.getLogger("gatepost.oidc")


def announce() -> None:
    """Log what `advice` returns for this process's environment as warnings."""
    for line in advice(os.environ):
        _LOG.warning(line)


def advice(environ: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each variable `OIDC_...` that is set: issuers can be configured in the settings file alone."""
    return [
        f"{name} is set and not read: "
        + (f"the variable is {near}" if near else "issuers are [[oidc.issuers]] in the settings file")
        for name, near in unread(environ, "OIDC_", _KNOWN)
    ]
