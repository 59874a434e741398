"""The benchmarks: their arithmetic is right, the check notices what got worse, and each script runs from end to end."""

from __future__ import annotations

import ast
import asyncio
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kits import ROOT, doc_page, test_exists
from kits.postgres import Server

from tests.conftest import url_of

BENCH = ROOT / "bench"
PAGE = doc_page("performance.md")
sys.path.append(str(BENCH))  # its modules are programs beside each other, not a package

import cases  # noqa: E402
import check  # noqa: E402
import load  # noqa: E402
import report  # noqa: E402
import scale  # noqa: E402
import stats  # noqa: E402
import streams  # noqa: E402
import tables  # noqa: E402

linux = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the benchmarks read Linux's /proc")


# Imports -----------------------------------------------------------------------------------------------------------------


def test_no_two_programs_import_each_other_not_even_around_a_corner() -> None:
    """Imports for the type checker count too. graphlib.CycleError names the circle."""
    names = {path.stem for path in BENCH.glob("*.py")}
    graph = {}
    for path in BENCH.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        graph[path.stem] = imported & names
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == names
    assert order.index("stats") < order.index("scale")


# Arithmetic --------------------------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians() -> None:
    assert stats.ratio([(10, 10), (30, 10), (200, 100)]) == (2.0, 1.0)
    assert stats.ratio([(80, 100)]) == (0.8, 0.0)
    assert str(stats.ratio([(1, 2), (3, 4), (4, 4)])) == "0.75 ± 0.25"


def test_half_a_range() -> None:
    assert stats.half_range([5.0]) == 0
    assert stats.half_range(iter([3, 1, 2, 6])) == 2.5


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [stats.percentile(values, part) for part in (0, 0.01, 0.5, 0.99, 1)] == [1, 1, 50, 99, 100]
    assert stats.percentile([7.0], 0.99) == 7


@pytest.mark.parametrize(
    ("costs", "word"),
    [
        ([100, 101, 99, 110, 124], "flat"),
        ([100, 60, 40, 30, 20], "flat"),
        ([100, 130, 160, 190, 220], "log"),
        ([30, 30.1, 31, 40, 130], "linear"),
        ([10, 100, 1000, 10_000, 100_000], "linear"),
    ],
)
def test_the_word_for_a_curve(costs: list[float], word: str) -> None:
    assert stats.curve([10, 100, 1000, 10_000, 100_000], costs) == word


def test_a_table_is_markdown() -> None:
    assert stats.table(["a", "b"], [["x", 1], ["y", 2]]) == "| a | b |\n|---|--:|\n| x | 1 |\n| y | 2 |"


def measured(case: str, server: str, round: int, us: float, p99: float = 1.0) -> dict[str, Any]:
    """One measurement; Postgres takes as much as the server, a verification 20 µs."""
    return {"case": case, "server": server, "round": round, "server_us": us, "postgres_us": us, "p99_ms": p99, "verify_us": 20.0,
            "rps": 1e6 / us, "p50_ms": 0.5, "foreign": 0.0}  # fmt: skip


def test_each_case_is_held_against_its_own_reference_in_its_own_round() -> None:
    rows = [
        measured("me", "limit", 0, 30), measured("me", "gatepost", 0, 36, p99=3.0),
        measured("me", "limit", 1, 60), measured("me", "gatepost", 1, 60),
        measured("static key", "gatepost", 0, 18), measured("static key", "gatepost", 1, 60),
        measured("new token", "gatepost", 0, 86), measured("new token", "gatepost", 1, 90),
    ]  # fmt: skip
    found = cases.summary(rows)
    assert found["me"]["server"] == pytest.approx((1.1, 0.1))
    assert found["me"]["both"] == pytest.approx((1.1, 0.1))
    assert found["me"]["p99"] == pytest.approx((2.0, 1.0))
    assert found["static key"]["server"] == pytest.approx((0.75, 0.25))
    assert found["new token"] == {"verify": pytest.approx((2.0, 0.5))}


def test_where_postgres_is_elsewhere_its_part_is_left_out() -> None:
    rows = [{**measured("me", server, 0, 30), "postgres_us": float("nan")} for server in ("limit", "gatepost")]
    assert set(cases.summary(rows)["me"]) == {"server", "p99"}


def test_the_audit_is_held_against_the_same_request_without_it() -> None:
    case = "audit of a post"
    rows = [measured(case, "no audit", 0, 40), measured(case, "gatepost", 0, 50), measured("post", "gatepost", 0, 90)]
    assert cases.summary([*rows, measured("post", "limit", 0, 30)]) == {
        "post": {name: pytest.approx((3.0 if name != "p99" else 1.0, 0.0)) for name in ("server", "both", "p99")},
        case: {name: pytest.approx((1.25 if name != "p99" else 1.0, 0.0)) for name in ("server", "both", "p99")},
    }
    assert cases.needed([case]) == [case]


def test_a_case_brings_along_what_it_is_held_against() -> None:
    assert cases.needed(["forged token"]) == ["no token", "forged token"]
    assert cases.needed(["static key", "data"]) == ["data", "me", "static key"]


# The loader --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 40),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 27),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
        (b"", None),
    ],
)
def test_an_answer_is_whole_when_its_body_is(data: bytes, size: int | None) -> None:
    assert load._whole(data) == size


class Scripted(asyncio.Protocol):
    """Answers every third request with 503, each in two pieces."""

    answered = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert data == b"GET / HTTP/1.1\r\n\r\n"
        type(self).answered += 1
        status = b"503 Service Unavailable" if type(self).answered % 3 == 0 else b"200 OK"
        self._transport.write(b"HTTP/1.1 %s\r\nContent-Le" % status)
        asyncio.get_running_loop().call_later(0.001, self._transport.write, b"ngth: 2\r\n\r\n{}")


@linux
@pytest.mark.parametrize("how", [{"count": 90}, {"seconds": 0.5, "rate": 60.0}])
async def test_the_loader_counts_every_answer_and_every_wrong_status(how: dict[str, Any]) -> None:
    Scripted.answered = 0
    server = await asyncio.get_running_loop().create_server(Scripted, "127.0.0.1", 0)
    job = load.Job(server.sockets[0].getsockname()[1], [b"GET / HTTP/1.1\r\n\r\n"], 5, **how)
    found = await asyncio.to_thread(load.run_job, job)
    server.close()
    assert found["broken"] == 0
    assert sum(found["bad"].values()) == found["bad"]["503"] == Scripted.answered // 3
    assert found["requests"] == 90 if "count" in how else 20 <= found["requests"] <= 35
    assert 0.001 <= found["p50"] <= found["p99"]


# The check ---------------------------------------------------------------------------------------------------------------

BEFORE = {"data": {"server": 0.8, "both": 1.0, "p99": 1.0}, "new token": {"verify": 2.0}}
NOW = {"data": {"server": [0.8, 0.02], "both": [1.0, 0.02], "p99": [1.0, 0.3]}, "new token": {"verify": [2.0, 0.1]}}


def checked(folder: Path, **now: dict[str, list[float]]) -> int:
    """The exit status of the check for this result, against BEFORE."""
    (folder / "baseline.json").write_text(json.dumps({"facts": {}, "ratios": BEFORE}))
    (folder / "run.json").write_text(json.dumps({"summary": {**NOW, **now}}))
    return check.main(["--baseline", str(folder / "baseline.json"), "--measured", str(folder / "run.json")])


def test_what_is_as_it_was_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(tmp_path) == 0
    assert checked(tmp_path, data={"server": [0.96, 0], "both": [0.5, 0], "p99": [1.7, 0]}) == 0
    assert "nothing got worse" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["server", "both", "p99"])
def test_what_got_worse_is_named_and_fails(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beyond = BEFORE["data"][kind] * (1 + check.TOLERANCE[kind]) + check.A_LITTLE + 0.001
    assert checked(tmp_path, data={**NOW["data"], kind: [beyond, 0.0]}) == 1
    assert capsys.readouterr().out.endswith(f"worse: data: {kind}\n")


def test_what_was_not_measured_has_not_passed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(tmp_path, **{"new token": {}}) == 1
    assert "worse: new token: verify" in capsys.readouterr().out


def test_what_was_not_asked_for_is_said_and_does_not_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "baseline.json").write_text(json.dumps({"ratios": BEFORE}))
    (tmp_path / "run.json").write_text(json.dumps({"args": {"cases": ["data"]}, "summary": {"data": NOW["data"]}}))
    assert check.main(["--baseline", str(tmp_path / "baseline.json"), "--measured", str(tmp_path / "run.json")]) == 0
    assert "not asked for (--only): new token" in capsys.readouterr().out


def test_a_baseline_is_written_from_a_result_and_holds_against_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"facts": {"CPU": "x"}, "summary": NOW}))
    words = ["--baseline", str(tmp_path / "new.json"), "--measured", str(tmp_path / "run.json")]
    assert check.main([*words, "--write"]) == 0
    assert json.loads((tmp_path / "new.json").read_text()) == {"facts": {"CPU": "x"}, "ratios": BEFORE}
    assert check.main(words) == 0


def test_the_baseline_is_of_cases_that_are_measured() -> None:
    ratios = json.loads(check.BASELINE.read_text())["ratios"]
    assert set(ratios) <= set(cases.CASES)
    assert {"data", "me", "no token"} <= set(ratios)
    assert {kind for kinds in ratios.values() for kind in kinds} <= set(check.TOLERANCE)


# The page ----------------------------------------------------------------------------------------------------------------


def test_results_go_into_their_place_and_leave_the_rest() -> None:
    page = "a\n<!-- results: run -->\nold\n<!-- end of run -->\nb\n<!-- results: locks -->\n<!-- end of locks -->\n"
    new = report.placed(page, "run", r"| new \1 |")
    assert new == page.replace("old\n", "\n| new \\1 |\n\n")
    assert report.placed(new, "run", r"| new \1 |") == new
    with pytest.raises(ValueError, match="0 places for scale"):
        report.placed(page, "scale", "x")


def test_the_page_has_a_place_for_each_kind_of_result() -> None:
    page = PAGE.read_text("utf-8")
    for kind in ("run", "scale", "locks", "streams"):
        assert report.placed(page, kind, "x") != page


def test_every_cache_of_the_page_names_tests_that_exist() -> None:
    rows = [line for line in PAGE.read_text("utf-8").partition("| cache |")[2].splitlines()[2:] if line.startswith("| ")]
    assert len(rows) > 8
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, name in named:
            assert test_exists(file, name), f"{file}::{name}"


def test_the_package_does_not_know_the_benchmarks() -> None:
    for package in ("server", "providers", "handlers"):
        for path in (ROOT / package).rglob("*.py"):
            assert not re.search(r"^\s*(?:from|import)\s+bench\b", path.read_text("utf-8"), re.MULTILINE), path


# From end to end ---------------------------------------------------------------------------------------------------------


def ran(script: str, *words: str) -> str:
    """What it prints; tiny sizes, so that it proves nothing but that it runs."""
    command = [sys.executable, str(BENCH / script), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def admin_url(postgres: Server) -> str:
    return url_of(postgres, postgres.admin, postgres.admin_database)


TINY = ("--rounds", "1", "--seconds", "0.2", "--connections", "4")


@linux
@pytest.mark.long
def test_run_from_end_to_end(tmp_path: Path) -> None:
    """With a throwaway Postgres of its own, the start with the embedded one, and the page that is made of it."""
    sizes = ("--users", "20", "--keys", "5", "--new-tokens", "20", "--starts", "1", "--streams", "5")
    out = ran("run.py", *TINY, *sizes, "--json", str(tmp_path / "r"))
    result = json.loads((tmp_path / "r").read_text())
    assert set(result["summary"]) == set(cases.CASES)
    assert all(row["requests"] > 0 and row["server_us"] > 0 for row in result["rows"])
    assert all(row["postgres_us"] > 0 for row in result["rows"] if row["case"] == "data")
    assert sum(result["workers"]["shares"]) == pytest.approx(1)
    assert result["start"]["warm"] > 0
    assert (result["streams"]["streams"], len(result["streams"]["both_us"])) == (5, 2)
    assert {row["server"] for row in result["rows"] if row["case"] == "audit of a post"} == {"no audit", "gatepost"}
    assert "by its Unix socket" in result["facts"]["Postgres"]
    assert 10 < result["memory"]["gatepost"] < 1000
    assert tables.text_of(result) == out.rstrip("\n")
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    assert report.main([str(tmp_path / "r"), "--page", str(page)]) == 0
    assert out.rstrip("\n") in page.read_text("utf-8")


@linux
@pytest.mark.long
def test_opcodes_from_end_to_end(postgres: Server) -> None:
    out = ran("opcodes.py", "--top", "1", "--database-url", admin_url(postgres))
    found = re.findall(r"^(.+): ([\d,]+) bytecode instructions, \d+ calls$", out, re.MULTILINE)
    counted = {name: int(number.replace(",", "")) for name, number in found}
    cases = ["me", "no token", "health", "forged token", "garbage", "new token"]
    assert list(counted) == [*cases, "me of limit", "me beside streams", "event of a broadcast"]
    assert counted["me beside streams"] == pytest.approx(counted["me"], rel=0.02)
    assert 500 < counted["health"] < counted["me"] < counted["new token"]
    if sys.version_info[:2] == (3, 11):  # other versions have other instructions
        assert counted["no token"] < counted["me of limit"] < counted["me"] < 1.1 * counted["me of limit"]
        assert counted["event of a broadcast"] < 1100  # some of it is timers


@linux
@pytest.mark.long
def test_scale_from_end_to_end(postgres: Server, tmp_path: Path) -> None:
    sizes = ("--most", "100", "--most-routes", "10", "--most-connections", "8", "--most-tokens", "10", "--slow-clients", "3")
    parts = ("--only", ",".join(part for part in scale.PARTS if part != "large"))
    out = ran("scale.py", *TINY, *sizes, *parts, "--others-rate", "50", "--database-url", admin_url(postgres), "--json", str(tmp_path / "s"))
    result = json.loads((tmp_path / "s").read_text())
    assert [len(curve["points"]) for curve in result["curves"]] == [2, 1, 2, 2, 2, 1, 1, 1, 1, 1, 2, 2, 2]
    assert all(curve["word"] for curve in result["curves"])
    assert [one["bad"] for one in result["neighbours"][:3]] == [{}, {}, {}]
    assert tables.text_of(result) == out.rstrip("\n")


@linux
@pytest.mark.long
def test_a_large_database_from_end_to_end(tmp_path: Path) -> None:
    sizes = ("--only", "large", "--most-large", "10000", "--audit", "2")
    out = ran("scale.py", *TINY, *sizes, "--json", str(tmp_path / "s"))
    result = json.loads((tmp_path / "s").read_text())
    assert [(one["data"], one["audit_log"], one["users"]) for one in result["loaded"]] == [(10_000, 20_000, 100)]
    assert [len(curve["points"]) for curve in result["curves"]] == [1] * 17
    assert all(curve["word"] for curve in result["curves"])
    assert tables.text_of(result) == out.rstrip("\n")


@linux
@pytest.mark.long
def test_ceilings_from_end_to_end() -> None:
    out = ran("ceilings.py", "--rounds", "1", "--seconds", "0.2", "--entries", "30000")
    assert [len(part.splitlines()) for part in out.split("\n\n")[1::2]] == [5, 5, 5]


@linux
@pytest.mark.long
def test_the_audit_logs_growth_from_end_to_end() -> None:
    lines = ran("audit_growth.py", "--sizes", "8000,40000", "--spare", "0.1").splitlines()
    assert lines[0] == "|  | 8,000 | 40,000 |"
    assert len(lines) == 11
    assert ran("audit_growth.py", "--sizes", "8000", "--spare", "1000000").splitlines()[0] == "|  |", "the disk must not run full"


def test_the_tables_of_a_large_database() -> None:
    points = [{"size": 10, "ms": 2.0}, {"size": 100, "ms": 2.2}]
    result = {
        "facts": {}, "neighbours": [], "loaded": [{"size": 10, "data": 10, "audit_log": 20, "bytes": 2**30}],
        "curves": [{"name": "`migrate`", "of": "rows", "word": "flat", "points": points}],
    }  # fmt: skip
    text = tables.scale_tables(result)
    assert "| 10 | 20 | 1.0 |" in text
    assert "**`migrate`**: flat.\n\n| rows | ms | ratio |\n|---|--:|--:|\n| 10 | 2.00 | 1.00 |\n| 100 | 2.20 | 1.10 |" in text


@linux
@pytest.mark.long
def test_locks_from_end_to_end(postgres: Server, tmp_path: Path) -> None:
    sizes = ("--users", "20", "--repetitions", "3", "--batch", "100")
    out = ran("locks.py", *sizes, "--database-url", admin_url(postgres), "--json", str(tmp_path / "l"))
    result = json.loads((tmp_path / "l").read_text())
    assert result["request"]["server_us"] > 10
    names = [one["lock"] for one in result["locks"]]
    assert [name[0] for name in names if name[0].isdigit()] == ["1", "2", "3", "4"]
    assert tables.text_of(result) == out.rstrip("\n")


@linux
@pytest.mark.long
def test_streams_from_end_to_end(postgres: Server, tmp_path: Path) -> None:
    """Gatepost alone: the peers have an environment of their own."""
    sizes = ("--servers", "gatepost", "--sizes", "1,10", "--events", "2", "--held", "5")
    out = ran("streams.py", *TINY, *sizes, "--database-url", admin_url(postgres), "--json", str(tmp_path / "s"))
    result = json.loads((tmp_path / "s").read_text())
    found = [(row["shape"], row["streams"], row["events"], row["lost"]) for row in result["rows"]]
    assert found == [("broadcast", 1, 2, 0), ("broadcast", 10, 20, 0), ("tenants", 10, 200, 0)] * 2
    assert [(one["ended"], one["open"], one["reasons"]) for one in result["ends"]] == [(5, 0, {"session-revoked": 5})] * 2
    assert all(one["seconds"] < 5 for one in result["ends"])
    assert result["same"]["events"] == 10
    assert result["beside"]["streams"] == 5
    assert tables.text_of(result) == out.rstrip("\n")


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(streams, "PEERS", Path("/nowhere"))
    with pytest.raises(SystemExit):
        streams.parse([])
    assert "make bench-streams" in capsys.readouterr().err
    assert streams.parse(["--servers", "gatepost", "--quick"]).events == 5


@linux
@pytest.mark.long
def test_check_measures_by_itself(postgres: Server, tmp_path: Path) -> None:
    words = (*TINY, "--users", "20", "--keys", "5", "--new-tokens", "20", "--only", "me", "--database-url", admin_url(postgres))
    ran("check.py", "--write", "--baseline", str(tmp_path / "b"), *words)
    assert set(json.loads((tmp_path / "b").read_text())["ratios"]) == {"me"}
    generous = {"me": {"server": 50.0}}
    (tmp_path / "b").write_text(json.dumps({"ratios": generous}))
    assert "nothing got worse" in ran("check.py", "--baseline", str(tmp_path / "b"), *words)
