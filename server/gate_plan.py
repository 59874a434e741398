"""What the gate knows of one route."""

from __future__ import annotations

from dataclasses import dataclass, field

from .access import Access
from .metrics import Tally


@dataclass(frozen=True, slots=True)
class Plan:
    """Its access, its template, whether both keys to it are turned, and where its requests are counted."""

    access: Access
    template: str
    public: bool
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)

    @property
    def words(self) -> str:
        """The access for people, as `routes` and the OpenAPI document say it."""
        return self.access.words() if self.public or not self.access.public else "signed in (declared public, not listed)"
