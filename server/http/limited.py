"""`@limited`: the bounds of one route, which a handler declares beside its access."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiohttp import web

from ..settings.rates import amount_and_seconds

F = TypeVar("F", bound=Callable[..., Any])
_MARK: Final = "__bounds__"
_MOST_BYTES: Final = 2**40


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one route; see `limited`. None where the route has no bound of its own."""

    body_bytes: int | None = None
    body_seconds: float | None = None
    rate: str | None = None
    concurrency: int | None = None

    def members(self) -> dict[str, Any]:
        """The bounds that are set, by name."""
        names = ("body_bytes", "body_seconds", "rate", "concurrency")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def words(self) -> str:
        """The bounds in words, as `routes` prints them."""
        return ", ".join(f"{name} {value}" for name, value in self.members().items())


def limited(
    *,
    body_bytes: int | None = None,
    body_seconds: float | None = None,
    rate: str | None = None,
    concurrency: int | None = None,
) -> Callable[[F], F]:
    """Set bounds of one route. Goes below `@routes`, above or below the access decorator; wraps nothing.

    body_bytes    the largest body in bytes, instead of `limits.body_bytes`; it may be larger. On a public route too, where a
                  body has at most 256 KiB otherwise
    body_seconds  the longest time in seconds to wait for a body, instead of `limits.body_seconds`
    rate          the most requests of one caller, such as `20/minute`, in addition to `limits.caller`. Beyond it: 429 `rate`
    concurrency   the most requests of one caller in progress at once in one process, in addition to `limits.concurrency`. The
                  others wait; after 2 seconds 429 `concurrency`

    A request without a caller, on a public route, is counted by its client's address, where that is known: in production not
    if it may be a proxy's, unless `limits.address` is set to a rate. HEAD counts as GET.

    Raises ValueError or TypeError, when the module is imported, where nothing is limited, and for an impossible value.
    """
    bounds = Bounds(
        _number("body_bytes", body_bytes, int, _MOST_BYTES),
        _number("body_seconds", body_seconds, (int, float), 86400),
        _rate(rate),
        _number("concurrency", concurrency, int, 1_000_000),
    )
    if not bounds.members():
        raise ValueError("@limited() limits nothing: name body_bytes, body_seconds, rate or concurrency")

    def mark(handler: F) -> F:
        if not callable(handler):
            raise TypeError(f"@limited: {handler!r} is not a handler")
        if bounds_of(handler) is not None:
            raise TypeError(f"{getattr(handler, '__qualname__', handler)}: its limits are declared twice")
        setattr(handler, _MARK, bounds)
        return handler

    return mark


def bounds_of(handler: object) -> Bounds | None:
    """The bounds that the handler declares, or None. The wrapper of the access decorator passes them on."""
    bounds = getattr(handler, _MARK, None)
    return bounds if isinstance(bounds, Bounds) else None


def bind(request: web.Request, bounds: Bounds) -> None:
    """Make aiohttp's own ways to read a body (`request.post()`, `read()`) keep the route's bound on its size."""
    if bounds.body_bytes is not None:
        request._client_max_size = bounds.body_bytes


def _number(name: str, value: Any, kind: Any, most: float) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"@limited({name}={value!r}): must be a number")
    least = 0 if name == "body_seconds" else 1
    if not least <= value <= most or value == 0:
        raise ValueError(f"@limited({name}={value!r}): must be {'more than 0' if least == 0 else '1'} to {most:_}")
    return value


def _rate(rate: Any) -> str | None:
    if rate is None:
        return None
    if not isinstance(rate, str):
        raise TypeError(f"@limited(rate={rate!r}): must be a text such as '20/minute'")
    try:
        amount_and_seconds(rate)
    except ValueError as error:
        raise ValueError(f"@limited(rate={rate!r}): {error}") from None
    return " ".join(rate.split())
