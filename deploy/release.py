"""Makes a release in dist/, and publishes nothing: `make release`, or `make release KEY=~/.ssh/id_ed25519` to sign it too.

It refuses a tree with changes and a version without an entry in CHANGELOG.md. It builds from the committed files alone, twice,
and the two builds must be the same bytes. dist/ then has the sdist, the wheel, the bill of materials, SHA256SUMS and
its signature.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUMS = "SHA256SUMS"
NAMESPACE = "gatepost-release"
"""What the signature is for: `ssh-keygen -Y verify -n` must name the same."""


class Refused(Exception):
    """No release is made: one line that says why."""


def git(*words: str, root: Path = ROOT) -> str:
    """What a git command prints, without the line end."""
    return subprocess.run(["git", *words], cwd=root, text=True, capture_output=True, check=True).stdout.strip()


def check(root: Path = ROOT) -> str:
    """Returns the version that the committed tree is to be released as. Raises Refused."""
    if changed := git("status", "--porcelain", root=root):
        raise Refused(f"the tree has changes that are not committed: {changed.splitlines()[0].split()[-1]}")
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    changelog = (root / "CHANGELOG.md").read_text("utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        raise Refused(f"CHANGELOG.md has no heading `## [{version}] - YYYY-MM-DD`")
    if git("tag", "--list", f"v{version}", root=root) and git("rev-parse", f"v{version}^{{commit}}", root=root) != git(
        "rev-parse", "HEAD", root=root
    ):
        raise Refused(f"the tag v{version} exists and is another commit: raise the version in pyproject.toml")
    return str(version)


def build(root: Path, out: Path) -> list[Path]:
    """Build the sdist from the committed files, and the wheel from the sdist, into `out`. Returns them, sorted by name."""
    when = git("log", "-1", "--format=%ct", root=root)
    env = os.environ | {"SOURCE_DATE_EPOCH": when, "PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        source.mkdir()
        archive = subprocess.run(["git", "archive", "--format=tar", "HEAD"], cwd=root, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
        python_build(source, out, "--sdist", env)
        (sdist,) = out.glob("*.tar.gz")
        subprocess.run(["tar", "-x", "-C", name, "-f", str(sdist)], check=True)
        python_build(Path(name) / sdist.name.removesuffix(".tar.gz"), out, "--wheel", env)
    return sorted(out.iterdir())


def python_build(source: Path, out: Path, kind: str, env: dict[str, str]) -> None:
    """Run `python -m build` without a network."""
    command = [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)


def sums(files: list[Path]) -> str:
    """The lines of SHA256SUMS: `sha256sum --check` reads them."""
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)


def same_twice(root: Path, out: Path) -> list[Path]:
    """Build twice; returns the files of the first build in `out`. Raises Refused if the second differs."""
    files = build(root, out)
    with tempfile.TemporaryDirectory() as again:
        if sums(files) != sums(build(root, Path(again))):
            raise Refused("two builds of the same commit differ")
    return files


def sign(file: Path, key: Path) -> Path:
    """Sign a file with an SSH key (or the agent's, for a public key); returns the signature."""
    signature = file.with_name(f"{file.name}.sig")
    signature.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(file)], check=True)
    return signature


def bill_of_materials(out: Path, version: str) -> Path:
    """Write the bill of materials (`make sbom`) beside the builds."""
    subprocess.run([sys.executable, str(ROOT / "deploy" / "sbom.py")], cwd=ROOT, check=True)
    return Path(shutil.copy(ROOT / "build" / "sbom.json", out / f"gatepost-{version}.sbom.json"))


def main() -> int:
    """Make the release, and say what is left to do by hand. Returns 0, or 1 if it is refused."""
    parser = argparse.ArgumentParser(prog="make release", description="Make a release in dist/, and publish nothing.")
    parser.add_argument("--key", type=Path, help="the SSH key to sign with")
    parser.add_argument("--check", action="store_true", help="only say whether a release could be made")
    args = parser.parse_args()
    try:
        version = check()
        if args.check:
            print(f"release: {version} can be made")
            return 0
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        (ROOT / "dist").mkdir()
        files = same_twice(ROOT, ROOT / "dist")
    except Refused as refused:
        print(f"release: {refused}", file=sys.stderr)
        return 1
    files.append(bill_of_materials(ROOT / "dist", version))
    (ROOT / "dist" / SUMS).write_text(sums(files))
    made = [file.name for file in files] + [SUMS]
    if args.key:
        made.append(sign(ROOT / "dist" / SUMS, args.key.expanduser()).name)
    print("\n".join(f"dist/{name}" for name in made))
    print(f"Two builds were the same. Not done: git tag -s v{version} && git push origin v{version}, and the upload of dist/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
