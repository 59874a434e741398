"""The Grafana dashboard and the alerts use only metrics and labels that the server exposes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kits.app import build_app
from kits.deploy import DEPLOY

from providers.jwt.jwks import KeySet
from server.app import SERVER_DATABASE
from server.database.pool import Pool
from server.plugins.providers import PROVIDERS
from server.serving.process_metrics import families_of

DASHBOARD = json.loads((DEPLOY / "grafana" / "gatepost.json").read_text("utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text("utf-8"))

# The metrics of /metrics and their labels.
METRICS: dict[str, set[str]] = {
    "gatepost_held_bytes": {"kind"}, "gatepost_slow_clients_total": set(),
    "gatepost_revocations": set(), "gatepost_endings_pending": set(), "gatepost_revocation_failures_total": {"kind"},
    "gatepost_requests_total": {"route", "method", "status"},
    "gatepost_request_duration_seconds": {"route", "method"},
    "gatepost_authentications_total": {"provider", "outcome"},
    "gatepost_provider_keyset_age_seconds": {"provider"},
    "gatepost_provider_keyset_fetches_total": {"provider"},
    "gatepost_provider_cache_hits_total": {"provider"},
    "gatepost_provider_cache_misses_total": {"provider"},
    "gatepost_pool_connections": {"state"},
    "gatepost_pool_waiting": set(),
    "gatepost_concurrency_waiting": set(),
    "gatepost_revocation_lag_seconds": set(),
    "gatepost_rate_limited_total": {"kind"},
    "gatepost_audit_dropped_total": set(),
    "gatepost_streams": set(), "gatepost_streams_opened_total": {"kind"}, "gatepost_streams_ended_total": {"reason"},
    "gatepost_workers": set(),
    "gatepost_up": set(),
}
HISTOGRAMS = {"gatepost_request_duration_seconds"}
OF_PROMETHEUS = {"job", "instance"}
WORDS = {"outcome": {"known", "rejected", "unavailable", "missing"}, "state": {"idle", "lent", "opening"}, "kind": {"caller", "concurrency", "address"}}


def series() -> dict[str, set[str]]:
    """The names that can be asked for: a histogram has three, and the buckets have one more label."""
    found = {name: labels for name, labels in METRICS.items() if name not in HISTOGRAMS}
    for name in HISTOGRAMS:
        found |= {f"{name}_bucket": METRICS[name] | {"le"}, f"{name}_sum": METRICS[name], f"{name}_count": METRICS[name]}
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """(where, expression) of everything that is asked of Prometheus, with Grafana's own words replaced."""
    asked = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    asked += [(rule["alert"], rule["expr"]) for group in ALERTS["groups"] for rule in group["rules"]]
    return [(where, text.replace("$__rate_interval", "5m")) for where, text in asked]


def unknown(text: str) -> set[str]:
    """Names of ours in a text that are none of the server's."""
    return set(re.findall(r"\bgatepost_\w+", text)) - set(series())


@pytest.mark.parametrize(("where", "text"), queries(), ids=[where for where, _ in queries()])
def test_every_metric_that_is_asked_for_is_the_servers(where: str, text: str) -> None:
    assert re.search(r"\bgatepost_\w+", text)
    assert unknown(text) == set()


async def test_the_list_is_what_the_server_tells(tmp_path: Path) -> None:
    """Names and labels, of a server with a provider that has keys from a URL."""
    settings = {"providers": ["clerk"], "clerk.publishable_key": "pk_test_" + b64encode(b"clerk.example.com$").decode(), "data_folder": str(tmp_path)}
    app = build_app(**{name.replace(".", "__"): value for name, value in settings.items()})
    app[SERVER_DATABASE].database._pool = Pool(asyncio.Event().wait, 1, must_discard=bool)  # type: ignore[arg-type]
    keys = app[PROVIDERS][0].provider._keys = KeySet(asyncio.Event().wait, algorithms=["RS256"], name="keys")  # type: ignore[arg-type,attr-defined]
    keys._fetched_at = 0.0
    told = {family.name: set(family.labels) for family in await families_of(app)}
    more = {"gatepost_provider_audience_observed_total": {"provider"}, "gatepost_provider_cache_tokens": {"provider"}, "gatepost_provider_keyset_failures_total": {"provider"}}
    assert told == METRICS | more


def test_a_wrong_name_would_be_noticed() -> None:
    assert unknown("rate(gatepost_request_total[5m]) / gatepost_up") == {"gatepost_request_total"}
    assert unknown("gatepost_request_duration_seconds") == {"gatepost_request_duration_seconds"}  # a histogram has no such series


def test_the_variables_ask_for_metrics_of_the_server() -> None:
    asked = [one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    assert len(asked) == 2
    for text in asked:
        assert text.startswith("label_values(gatepost_")
        assert unknown(text) == set()


def test_every_metric_is_drawn_somewhere() -> None:
    text = " ".join(text for _, text in queries())
    assert [name for name in METRICS if not re.search(rf"\b{name}(?:_bucket|_sum|_count)?\b", text)] == []


def walk(parsed: Any, promql: Any, inside: frozenset[str] = frozenset()) -> Iterator[tuple[str, set[str], set[str], dict[str, str]]]:
    """(metric, labels that are matched, labels it is summed by, values matched exactly) of every metric in an expression."""
    if isinstance(parsed, promql.AggregateExpr) and parsed.modifier is not None:
        inside = inside | frozenset(parsed.modifier.labels)
    if isinstance(parsed, promql.VectorSelector):
        matchers = [one for one in parsed.matchers.matchers if one.name != "__name__"]
        exact = {one.name: one.value for one in matchers if one.op == promql.MatchOp.Equal}
        yield parsed.name, {one.name for one in matchers}, set(inside), exact
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (child := getattr(parsed, name, None)) is not None:
            yield from walk(child, promql, inside)
    for child in getattr(parsed, "args", ()) or ():
        yield from walk(child, promql, inside)


@pytest.mark.parametrize(("where", "text"), queries(), ids=[where for where, _ in queries()])
def test_every_query_is_promql_with_labels_that_its_metrics_have(where: str, text: str) -> None:
    if importlib.util.find_spec("promql_parser") is None:
        pytest.skip("promql-parser is not installed (make deploy-tools)")
    import promql_parser

    found = list(walk(promql_parser.parse(text), promql_parser))
    assert {name for name, *_ in found} == set(re.findall(r"\bgatepost_\w+", text))  # the walk has seen them all
    for name, matched, by, exact in found:
        assert matched | by <= series()[name] | OF_PROMETHEUS, (name, matched | by)
        for label, value in exact.items():
            assert value in WORDS.get(label, {value}), (label, value)
        counted = name.endswith(("_total", "_bucket", "_sum", "_count"))
        assert counted is bool(re.search(rf"(?:rate|increase)\({name}\b", text)), name  # counters by their rate, gauges as they are


def test_every_legend_names_labels_that_are_there() -> None:
    for panel in panels():
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            by = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in labels.split(",")}
            assert shown <= by, panel["title"]


def test_the_dashboard_is_whole() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("gatepost", "Gatepost")
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    assert all(panel["description"] for panel in panels())
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels())
    for panel in panels():  # none over another, none beyond the edge
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for other in panels():
            there = other["gridPos"]
            assert other is panel or (
                at["x"] >= there["x"] + there["w"] or there["x"] >= at["x"] + at["w"]
                or at["y"] >= there["y"] + there["h"] or there["y"] >= at["y"] + at["h"]), (panel["title"], other["title"])  # fmt: skip
    (age,) = [panel for panel in panels() if panel["title"] == "Key set age"]
    assert [step["value"] for step in age["fieldConfig"]["defaults"]["thresholds"]["steps"]] == [None, 600, 3600]


def test_every_alert_says_what_it_means() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 4
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}
        shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        by = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in labels.split(",")} or OF_PROMETHEUS
        assert shown <= by, rule["alert"]
    promtool = shutil.which("promtool")
    if promtool is not None:
        subprocess.run([promtool, "check", "rules", DEPLOY / "prometheus" / "alerts.yaml"], check=True, capture_output=True)
