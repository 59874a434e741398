"""The release recipe: what is refused, builds that are the same bytes, signatures, and the wheel that the sdist builds."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from kits import ROOT

_spec = importlib.util.spec_from_file_location("release", ROOT / "deploy" / "release.py")
assert _spec is not None
assert _spec.loader is not None
release = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(release)


def git(folder: Path, *words: str) -> None:
    names = {f"GIT_{who}_{what}": "release@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {**os.environ, **names, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_COMMITTER_DATE": "2026-11-28T12:00:00Z"}
    subprocess.run(["git", *words], cwd=folder, env=env, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of its own with two files, and the changelog entry of their version."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "gatepost"\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-11-28\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_a_clean_tree_with_an_entry_is_released(checkout: Path) -> None:
    assert release.check(checkout) == "1.2.3"
    git(checkout, "tag", "v1.2.3")
    assert release.check(checkout) == "1.2.3"  # the tag is this commit


@pytest.mark.parametrize("change", ["changed", "staged", "new"])
def test_a_tree_with_changes_is_refused(checkout: Path, change: str) -> None:
    file = checkout / ("other.txt" if change == "new" else "CHANGELOG.md")
    file.write_text("changed")
    if change == "staged":
        git(checkout, "add", ".")
    with pytest.raises(release.Refused, match=rf"^the tree has changes that are not committed: {re.escape(file.name)}$"):
        release.check(checkout)


@pytest.mark.parametrize("heading", ["## [Unreleased]", "## [1.2.30] - 2026-11-28", "## [1.2.3]", "## [1x2.3] - 2026-11-28"])
def test_a_version_without_an_entry_is_refused(checkout: Path, heading: str) -> None:
    (checkout / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    git(checkout, "commit", "--quiet", "-am", "second")
    with pytest.raises(release.Refused, match="has no heading"):
        release.check(checkout)


def test_a_version_that_was_released_is_refused(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.3")
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "second")
    with pytest.raises(release.Refused, match="raise the version"):
        release.check(checkout)


def test_what_is_signed_is_verified_and_what_was_changed_is_not(tmp_path: Path) -> None:
    """The commands of SECURITY.md."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "release", "-f", tmp_path / "key"], check=True)
    (tmp_path / "gatepost-1.2.3.tar.gz").write_bytes(b"a release")
    sums = tmp_path / release.SUMS
    sums.write_text(release.sums([tmp_path / "gatepost-1.2.3.tar.gz"]))
    assert release.sign(sums, tmp_path / "key") == tmp_path / "SHA256SUMS.sig"
    (tmp_path / "allowed_signers").write_text("releases@gatepost " + (tmp_path / "key.pub").read_text())
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    block = re.search(r"```text\n(ssh-keygen -Y verify .*?)```", page, re.DOTALL)
    assert block is not None

    def verified() -> bool:
        return subprocess.run(["sh", "-ec", block[1]], cwd=tmp_path, capture_output=True, check=False).returncode == 0

    assert verified()
    (tmp_path / "gatepost-1.2.3.tar.gz").write_bytes(b"another")
    assert not verified()
    sums.write_text(release.sums([tmp_path / "gatepost-1.2.3.tar.gz"]))
    assert not verified()  # the signature is of other sums


@pytest.mark.long
def test_two_builds_are_the_same_and_the_sdist_builds_the_wheel(tmp_path: Path) -> None:
    """From the committed files. The wheel has what the checkout has, the data files too."""
    (tmp_path / "dist").mkdir()
    files = release.same_twice(ROOT, tmp_path / "dist")
    assert [file.suffix for file in files] == [".whl", ".gz"]
    (tmp_path / "direct").mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    (tmp_path / "source").mkdir()
    subprocess.run(["tar", "-x", "-C", tmp_path / "source"], input=archive, check=True)
    when = release.git("log", "-1", "--format=%ct")
    release.python_build(tmp_path / "source", tmp_path / "direct", "--wheel", os.environ | {"SOURCE_DATE_EPOCH": when})
    (direct,) = (tmp_path / "direct").iterdir()
    assert direct.read_bytes() == files[0].read_bytes()
    with zipfile.ZipFile(files[0]) as wheel:
        names = wheel.namelist()
        assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"server", "providers", "handlers"}
        for name in ("server/schema.sql", "handlers/docs/assets/access.js", "server/commands/plugin_files/schema.tmpl"):
            assert name in names
        assert not any("__pycache__" in name or name.endswith(".pyc") for name in names)
    with tarfile.open(files[1]) as sdist:
        inner = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"schema.sql", "CHANGELOG.md", "SECURITY.md", "Makefile", "requirements.txt", "deploy/release.py"} <= inner
    assert not any(name.startswith((".git/", ".cache", ".gatepost")) for name in inner)
