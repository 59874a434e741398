"""Metrics in the text format of Prometheus. Imported only when they are read, and never in a worker with a parent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from .metrics import BUCKETS, Family

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS: Final = [*(str(bound) for bound in BUCKETS), "+Inf"]


def as_text(families: Iterable[Family]) -> bytes:
    """Families in the text format of Prometheus, as bytes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(list(families)))
    return generate_latest(registry)


class _Once:
    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            if family.samples or not family.labels:
                yield _KINDS[family.kind](family)


def _histogram(family: Family) -> Metric:
    made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, (*counts, seconds) in family.samples.items():
        added, buckets = 0.0, []
        for bound, count in zip(_BOUNDS, counts, strict=True):
            added += count
            buckets.append((bound, added))
        made.add_metric(list(labels), buckets, seconds)
    return made


def _plain(kind: Any, family: Family) -> Metric:
    made: Metric = kind(family.name, family.help, labels=family.labels)
    for labels, (value,) in family.samples.items():
        made.add_metric(list(labels), value)  # type: ignore[attr-defined]
    return made


_KINDS: Final[Mapping[str, Any]] = {
    "counter": lambda family: _plain(CounterMetricFamily, family),
    "gauge": lambda family: _plain(GaugeMetricFamily, family),
    "histogram": _histogram,
}
