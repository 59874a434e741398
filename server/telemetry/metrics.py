"""Metrics of requests and credentials, kept as plain numbers in memory so that counting costs almost nothing.

server/telemetry/prometheus.py renders them. Labels are route templates, statuses and provider names: never a path, an
address, a user or an organisation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram's buckets, in seconds."""
NO_ROUTE: Final = "(none)"
"""The template of requests without a route: an unknown path, a preflight, a malformed request."""

Labels = tuple[str, ...]


class Family(NamedTuple):
    """One metric with all its samples, as plain data that a worker can send to its parent.

    kind    counter, gauge or histogram; a histogram's sample is the count of each bucket (not cumulative), then the sum
    merge   how the workers' samples are combined: sum or max
    """

    name: str
    kind: str
    help: str
    labels: Labels
    samples: Mapping[Labels, list[float]]
    merge: str = "sum"


class Tally:
    """The requests of one method and template."""

    __slots__ = ("buckets", "seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def add(self, status: int, seconds: float) -> None:
        """Count one response that took `seconds`."""
        statuses = self.statuses
        statuses[status] = statuses.get(status, 0) + 1
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


class UntimedTally(Tally):
    """The requests of a route that streams: their duration depends on the client, so it is not measured."""

    __slots__ = ()

    def add(self, status: int, seconds: float) -> None:
        """Count one response."""
        self.statuses[status] = self.statuses.get(status, 0) + 1


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}
        self.authentications: Counter[tuple[str, str]] = Counter()
        """By provider (`none`: no credential, or one that no provider recognises) and outcome."""
        self.limited: Counter[str] = Counter()
        """Requests denied by a limit, by the kind of limit."""

    def tally(self, method: str, template: str, *, timed: bool = True) -> Tally:
        """The Tally for one method and template. Called once per route, not per request; requests without a route share one."""
        return self._tallies.setdefault((method, template), Tally() if timed else UntimedTally())

    def families(self) -> list[Family]:
        """Everything counted so far."""
        requests: dict[Labels, list[float]] = {
            (route, method, str(status)): [float(number)]
            for (method, route), tally in self._tallies.items()
            for status, number in tally.statuses.items()
        }
        durations: dict[Labels, list[float]] = {
            (route, method): [*map(float, tally.buckets), tally.seconds]
            for (method, route), tally in self._tallies.items()
            if any(tally.buckets)
        }
        outcomes: dict[Labels, list[float]] = {labels: [float(number)] for labels, number in self.authentications.items()}
        return [
            Family("gatepost_requests_total", "counter", "Answers.", ("route", "method", "status"), requests),
            Family(
                "gatepost_request_duration_seconds", "histogram", "From a whole head to a whole answer.",
                ("route", "method"), durations,
            ),
            Family(
                "gatepost_authentications_total", "counter", "Credentials, by provider and outcome.",
                ("provider", "outcome"), outcomes,
            ),
            counter("gatepost_rate_limited_total", "Requests over a limit.", "kind", self.limited),
        ]  # fmt: skip


def counter(name: str, help: str, label: str, numbers: Mapping[str, float]) -> Family:
    """A counter with one label."""
    return Family(name, "counter", help, (label,), {(value,): [float(number)] for value, number in numbers.items()})


def gauge(name: str, help: str, value: float, *, merge: str = "sum") -> Family:
    """A number that goes up and down, without labels."""
    return Family(name, "gauge", help, (), {(): [float(value)]}, merge)


def merged(parts: Iterable[Iterable[Family]]) -> list[Family]:
    """The families of several processes as those of one."""
    found: dict[str, Family] = {}
    for family in (family for part in parts for family in part):
        known = found.get(family.name)
        if known is None:
            found[family.name] = family._replace(samples={labels: list(values) for labels, values in family.samples.items()})
            continue
        for labels, values in family.samples.items():
            before = known.samples.get(labels)
            join = max if family.merge == "max" else float.__add__
            now = list(values) if before is None else [join(a, b) for a, b in zip(before, values, strict=True)]
            known.samples[labels] = now  # type: ignore[index]
    return list(found.values())


class Counts:
    """The metrics of all workers of one parent, including those that have ended: a counter must not decrease."""

    def __init__(self) -> None:
        self._last: dict[int, list[Family]] = {}
        self._gone: list[Family] = []

    def update(self, worker: int, families: list[Family]) -> None:
        """Replace what is known of a running worker."""
        self._last[worker] = families

    def retire(self, worker: int) -> None:
        """Keep the last known counters and histograms of a worker that has ended; drop its gauges."""
        counted = [family for family in self._last.pop(worker, []) if family.kind != "gauge"]
        self._gone = merged([self._gone, counted])

    def total(self) -> list[Family]:
        """The metrics of all workers, combined as if they were one process."""
        return merged([*self._last.values(), self._gone])


def as_json(families: Iterable[Family]) -> bytes:
    """Families as JSON, for the parent of several workers."""
    return msgspec.json.encode([[*family[:4], list(family.samples.items()), family.merge] for family in families])


def from_json(raw: bytes) -> list[Family]:
    """The families in the output of `as_json`. Raises ValueError for anything else."""
    decoded = msgspec.json.decode(raw, type=list[tuple[str, str, str, list[str], list[tuple[list[str], list[float]]], str]])
    return [
        Family(name, kind, help, tuple(labels), {tuple(values): numbers for values, numbers in samples}, merge)
        for name, kind, help, labels, samples, merge in decoded
    ]
