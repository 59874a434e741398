"""What the gate knows of one route."""

from __future__ import annotations

from dataclasses import dataclass

from .access import Access


@dataclass(frozen=True, slots=True)
class Plan:
    """Its access, its template, and whether both keys to it are turned."""

    access: Access
    template: str
    public: bool

    @property
    def words(self) -> str:
        """The access for people, as `routes` and the OpenAPI document say it."""
        return self.access.words() if self.public or not self.access.public else "signed in (declared public, not listed)"
