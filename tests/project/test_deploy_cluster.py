"""What is in deploy/cluster/: every file of every machine is rendered, and read by what it is for, without starting a cluster."""

from __future__ import annotations

import configparser
import importlib.util
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from kits import ROOT

from server.plugins.loader import Plugins
from server.settings.sources import Settings

CLUSTER = ROOT / "deploy" / "cluster"


def module(name: str) -> ModuleType:
    """A program of deploy/cluster."""
    spec = importlib.util.spec_from_file_location(f"deploy_cluster_{name}", CLUSTER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


RENDER = module("machine_files")
VALUES = RENDER.values_of(CLUSTER / "cluster.env")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What machine_files.py writes for cluster.env as it is."""
    folder = tmp_path_factory.mktemp("rendered") / "out"
    done = subprocess.run([sys.executable, CLUSTER / "machine_files.py", CLUSTER / "cluster.env", folder], check=True, capture_output=True, text=True)
    assert "pg1: patroni.yaml, roles.sql" in done.stdout
    return folder


def test_each_machine_has_its_files_and_only_their_owner_reads_them(rendered: Path) -> None:
    assert {path.name for path in rendered.iterdir()} == {*RENDER.MACHINES, "secrets.env"}
    for path in rendered.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        if path.is_file():
            assert "${" not in path.read_text("utf-8"), path


def test_passwords_are_made_once(rendered: Path) -> None:
    known = RENDER.passwords(rendered / "secrets.env")
    assert len(set(known.values())) == len(known) == len(RENDER.PASSWORDS) + 1
    assert RENDER.passwords(rendered / "secrets.env") == known


def test_every_value_is_used_and_every_line_of_it_explained() -> None:
    texts = "".join((CLUSTER / file).read_text("utf-8") for files in RENDER.MACHINES.values() for file in files)
    assert [name for name in VALUES if f"${{{name}}}" not in texts and name not in map(str.upper, RENDER.MACHINES)] == []


def test_a_value_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="PG1"):
        RENDER.render("proxy", {name: value for name, value in VALUES.items() if name != "PG1"}, tmp_path / "proxy")


def test_the_times_of_patroni_keep_its_rule(rendered: Path) -> None:
    """https://patroni.readthedocs.io/en/latest/dynamic_configuration.html: loop_wait + 2 * retry_timeout <= ttl."""
    local = module("cluster").LOCAL
    for values in (VALUES, {**VALUES, **local}):
        ttl, wait, retry = (int(values[f"PATRONI_{name}"]) for name in ("TTL", "LOOP_WAIT", "RETRY_TIMEOUT"))
        assert wait + 2 * retry <= ttl >= 20
    dcs = yaml.safe_load((rendered / "pg2" / "patroni.yaml").read_text("utf-8"))["bootstrap"]["dcs"]
    assert dcs["synchronous_mode"] is True
    assert dcs["failsafe_mode"] is True
    assert dcs["postgresql"]["use_pg_rewind"] is True


def test_three_etcd_know_each_other(rendered: Path) -> None:
    read = [yaml.safe_load((rendered / f"etcd{n}" / "etcd.yaml").read_text("utf-8")) for n in (1, 2, 3)]
    assert len({one["initial-cluster"] for one in read}) == 1
    for one in read:
        assert f"{one['name']}={one['initial-advertise-peer-urls']}" in one["initial-cluster"].split(",")


def test_haproxy_reads_its_file(rendered: Path) -> None:
    program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.skip("haproxy is not installed")
    done = subprocess.run([program, "-c", "-f", rendered / "proxy" / "haproxy.cfg"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stderr


def test_the_pool_is_large_enough_for_every_worker(rendered: Path) -> None:
    parsed = configparser.ConfigParser()
    parsed.read(rendered / "pooler" / "pgbouncer.ini")
    pooler = parsed["pgbouncer"]
    workers, size = int(VALUES["GATEPOST_WORKERS"]), int(VALUES["GATEPOST_POOL_SIZE"])
    assert pooler["pool_mode"] == "transaction"
    assert 4 * workers * size <= int(pooler["max_client_conn"])  # three servers, and one more while they are replaced
    assert int(pooler["default_pool_size"]) + 4 * workers * 2 + 10 <= int(VALUES["POSTGRES_MAX_CONNECTIONS"])
    assert f"host={VALUES['PROXY']} port=5000" in parsed["databases"]["gatepost"]


@pytest.mark.parametrize("name", ["gatepost2", "migrate"])
def test_the_server_knows_every_variable(rendered: Path, name: str) -> None:
    (file,) = (rendered / name).iterdir()
    settings = Settings(environ=RENDER.values_of(file))
    Plugins(settings)
    assert settings.get("env") == "production"
    if name == "gatepost2":
        assert settings.get("host") == VALUES["GATEPOST2"]
        assert settings.get("database.pooler") == "transaction"
        assert settings.get("trusted_proxies")
