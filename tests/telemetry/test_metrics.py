"""Metrics: what is counted and how it is exposed, without a path, an address or a tenant in a label."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from kits import ROOT
from kits.app import build_app, provider_plugin, serving
from kits.pages import free_port
from prometheus_client.parser import text_string_to_metric_families

from server import Identity
from server.serving.process_metrics import families_of
from server.telemetry.metrics import BUCKETS, Counts, Family, Metrics, as_json, counter, from_json, gauge, merged
from server.telemetry.prometheus import as_text
from tests.conftest import ALICE, CLERK_A, Serve, stub


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """By name and labels, as Prometheus would read it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


async def test_requests_are_counted_by_template_and_status_and_nothing_else(serve: Serve) -> None:
    client = await serve()
    for _ in range(3):
        assert (await client.get("/api/me", ALICE)).status == 200
    assert (await client.get("/api/me")).status == 401
    assert (await client.get("/api/data/11111111-1111-4111-8111-111111111111", ALICE)).status == 404
    assert (await client.get("/api/secret-path-of-mine", ALICE)).status == 404
    assert (await client.get("/api/secret-path-of-mine")).status == 401
    assert (await client.get("/api/%zz")).status == 400
    assert (await client.get("/api/invoices", ALICE)).status == 403
    text = as_text(await families_of(client.app))
    requests = {k[1]: v for k, v in samples(text).items() if k[0] == "gatepost_requests_total"}
    assert {tuple(sorted(labels)): number for labels, number in requests.items()} == {
        (("method", "GET"), ("route", "/api/me"), ("status", "200")): 3,
        (("method", "GET"), ("route", "/api/me"), ("status", "401")): 1,
        (("method", "GET"), ("route", "/api/data/{id}"), ("status", "404")): 1,
        (("method", "GET"), ("route", "/api/invoices"), ("status", "403")): 1,
        (("method", "(any)"), ("route", "(none)"), ("status", "404")): 1,
        (("method", "(any)"), ("route", "(none)"), ("status", "401")): 1,
        (("method", "(any)"), ("route", "(none)"), ("status", "400")): 1,
    }
    for canary in (b"secret-path", b"11111111", b"alice", b"org_a", b"127.0.0.1"):
        assert canary not in text


async def test_durations_are_a_histogram_that_adds_up(serve: Serve) -> None:
    client = await serve()
    for _ in range(5):
        await client.get("/api/me", ALICE)
    text = as_text(await families_of(client.app))
    where = {"method": "GET", "route": "/api/me"}
    assert value(text, "gatepost_request_duration_seconds_count", **where) == 5
    assert value(text, "gatepost_request_duration_seconds_bucket", le="+Inf", **where) == 5
    assert value(text, "gatepost_request_duration_seconds_sum", **where) > 0
    grown = [value(text, "gatepost_request_duration_seconds_bucket", le=str(bound), **where) for bound in BUCKETS]
    assert grown == sorted(grown)


async def test_authentications_are_counted_by_provider_and_outcome(serve: Serve) -> None:
    client = await serve()
    await client.get("/api/me", ALICE)
    await client.get("/api/me")
    await client.get("/api/me", {"Authorization": "Stub nonsense"})
    await client.get("/api/me", {"X-API-Key": "gp_nobody-knows-this-key"})
    await client.get("/api/me", {"Authorization": "Basic YTpi"})
    await client.get("/api/health", ALICE)  # public: the credential is not looked at
    told = {
        (dict(labels)["provider"], dict(labels)["outcome"]): number
        for (name, labels), number in samples(as_text(await families_of(client.app))).items()
        if name == "gatepost_authentications_total"
    }
    assert told == {("stub", "known"): 1, ("none", "missing"): 1, ("stub", "rejected"): 1, ("api_key", "rejected"): 1, ("none", "rejected"): 1}


async def test_the_pool_and_the_revocations_are_measured(serve: Serve) -> None:
    client = await serve()
    await client.get("/api/data", CLERK_A)
    text = as_text(await families_of(client.app))
    assert value(text, "gatepost_pool_connections", state="idle") >= 1
    assert value(text, "gatepost_pool_connections", state="lent") == 0
    assert value(text, "gatepost_pool_waiting") == 0
    assert 0 <= value(text, "gatepost_revocation_lag_seconds") < 10
    assert value(text, "gatepost_up") == 1


class Telling:
    def __init__(self, told: Any) -> None:
        self.told = told

    async def authenticate(self, request: web.Request) -> Identity | None:
        return None

    def figures(self) -> Any:
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


@pytest.mark.parametrize("told", [RuntimeError("secret-canary"), {"a": "secret-canary"}, None, {"b b": 1}, {'x"}': 1}, ["a"]])
async def test_a_providers_odd_figures_spoil_nothing(told: Any) -> None:
    providers = {"odd": Telling(told), "good": Telling({"things_total": 3, "level": 0.5})}
    app = build_app({"two": provider_plugin(**providers)}, providers=["odd", "good"])
    async with serving(app):
        text = as_text(await families_of(app))
    assert value(text, "gatepost_provider_things_total", provider="good") == 3
    assert value(text, "gatepost_provider_level", provider="good") == 0.5
    assert b"canary" not in text
    assert b'provider="odd"' not in text


numbers = st.integers(0, 2**40).map(float)
families = st.builds(
    lambda a, b, g, c: [
        counter("a_total", "A.", "kind", a), gauge("g", "G.", g), gauge("m", "M.", g, merge="max"),
        Family("h", "histogram", "H.", ("route",), {(route,): [*map(float, counts), 0.5] for route, counts in b.items()}),
        Family("empty_total", "counter", "E.", ("x",), {}),
    ],
    st.dictionaries(st.sampled_from(["x", "y", "z"]), numbers, max_size=3),
    st.dictionaries(st.sampled_from(["/a", "/b"]), st.lists(st.integers(0, 99), min_size=14, max_size=14), max_size=2),
    numbers, numbers,
)  # fmt: skip


@given(families)
def test_what_a_worker_tells_its_parent_comes_back_as_it_was(told: list[Family]) -> None:
    assert [(f.name, f.kind, f.labels, dict(f.samples), f.merge) for f in from_json(as_json(told))] == [
        (f.name, f.kind, f.labels, dict(f.samples), f.merge) for f in told
    ]


@given(st.lists(families, min_size=1, max_size=4))
def test_merged_is_the_sum_and_changes_no_part(parts: list[list[Family]]) -> None:
    before = [as_json(part) for part in parts]
    found = {family.name: family for family in merged(parts)}
    assert [as_json(part) for part in parts] == before
    for kind in ("x", "y", "z"):
        assert found["a_total"].samples.get((kind,), [0.0])[0] == sum(part[0].samples.get((kind,), [0.0])[0] for part in parts)
    assert found["g"].samples[()] == [sum(part[1].samples[()][0] for part in parts)]
    assert found["m"].samples[()] == [max(part[2].samples[()][0] for part in parts)]
    as_text(found.values())


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"{}", b'[["a"]]', b'[["a","counter","",[],[[[],["x"]]],"sum"]]'])
def test_a_worker_that_talks_nonsense_is_not_believed(raw: bytes) -> None:
    with pytest.raises(ValueError):
        from_json(raw)


def test_a_counter_does_not_go_back_when_a_worker_dies() -> None:
    counts, metrics = Counts(), Metrics()
    metrics.tally("GET", "/a").add(200, 0.1)
    counts.update(0, [*metrics.families(), gauge("level", "L.", 5)])
    counts.update(1, [*metrics.families(), gauge("level", "L.", 7)])
    assert value(as_text(counts.total()), "gatepost_requests_total", method="GET", route="/a", status="200") == 2
    counts.retire(0)
    text = as_text(counts.total())
    assert value(text, "gatepost_requests_total", method="GET", route="/a", status="200") == 2
    assert value(text, "level") == 7  # its level is over with it
    counts.update(0, metrics.families())
    assert value(as_text(counts.total()), "gatepost_requests_total", method="GET", route="/a", status="200") == 3


def get(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes, str]:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    try:
        with urllib.request.urlopen(asked, timeout=5) as got:
            return got.status, got.read(), got.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers["Content-Type"]


@pytest.mark.parametrize("workers", [1, 2])
async def test_metrics_over_http_are_those_of_all_workers(db: Any, tmp_path: Path, workers: int) -> None:
    ops = free_port()
    environment = {
        "PATH": os.environ["PATH"], "GATEPOST_ENV": "test", "GATEPOST_PORT": "0", "GATEPOST_OPS_PORT": str(ops),
        "GATEPOST_PROVIDERS": "stub", "GATEPOST_WORKERS": str(workers), "DATABASE_URL": db.url, "GATEPOST_DATA_FOLDER": str(tmp_path),
        "GATEPOST_DATABASE_POOL_SIZE": "2",
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "server"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        port = int(re.search(r":(\d+)$", line.strip())[1])  # type: ignore[index]
        for number in range(40):  # connections of their own, so that both workers get some
            status, _, _ = await asyncio.to_thread(get, port, "/api/me", stub(f"user_{number}"))
            assert status == 200
        status, text, kind = await asyncio.to_thread(get, ops, "/metrics")
        assert (status, kind.split(";")[0]) == (200, "text/plain")
        assert value(text, "gatepost_requests_total", method="GET", route="/api/me", status="200") == 40
        assert value(text, "gatepost_workers") == workers
        assert (await asyncio.to_thread(get, port, "/metrics"))[0] == 401  # on the operations port alone
    finally:
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
