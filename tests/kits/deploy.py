"""Reads what is in deploy/ as its tools would: manifests put together, a container's environment, a service of compose.yaml."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kits import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text("utf-8"))
OVERLAY = DEPLOY / "kubernetes" / "overlays" / "example"


# Kubernetes --------------------------------------------------------------------------------------------------------------


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The resources of a kustomization: as much of kustomize as these use. An unknown field is an error.

    A generated ConfigMap keeps its plain name, to which kustomize would add a hash of its content.
    """
    said = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    known = {"apiVersion", "kind", "resources", "labels", "namespace", "images", "configMapGenerator", "patches"}
    assert set(said) <= known, set(said) - known
    found: list[dict[str, Any]] = []
    for name in said["resources"]:
        path = folder / name
        found += kustomize(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text("utf-8")))
    for one in said.get("configMapGenerator", ()):
        data = dict(pair for name in one["envs"] for pair in pairs((folder / name).read_text("utf-8")))
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": one["name"]}, "data": data})
    for patch in said.get("patches", ()):
        more = yaml.safe_load((folder / patch["path"]).read_text("utf-8"))
        (target,) = [one for one in found if (one["kind"], one["metadata"]["name"]) == (more["kind"], more["metadata"]["name"])]
        _merge(target, more)
    for one in found:
        for labels in said.get("labels", ()):
            one["metadata"].setdefault("labels", {}).update(labels["pairs"])
        if "namespace" in said:
            one["metadata"]["namespace"] = said["namespace"]
        for container in containers(one):
            for image in said.get("images", ()):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return found


def _merge(base: dict[str, Any], more: Mapping[str, Any]) -> None:
    """A strategic merge: mappings into each other, lists of named things by name, everything else in place."""
    for key, value in more.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value)
        elif isinstance(value, list) and isinstance(old, list) and all("name" in one for one in [*value, *old]):
            names = {one["name"]: one for one in old}
            for one in value:
                _merge(names[one["name"]], one) if one["name"] in names else old.append(one)
        else:
            base[key] = copy.deepcopy(value)


def containers(resource: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The containers of a Deployment or a Job."""
    spec = resource.get("spec", {}).get("template", {}).get("spec", {})
    return [*spec.get("initContainers", ()), *spec.get("containers", ())]


def of_kind(resources: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one resource of this kind."""
    (found,) = [one for one in resources if one["kind"] == kind]
    return found


def environment(container: Mapping[str, Any], resources: list[dict[str, Any]]) -> dict[str, str]:
    """The environment that the kubelet gives a container."""
    maps = {one["metadata"]["name"]: one["data"] for one in resources if one["kind"] == "ConfigMap"}
    env: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        env |= maps[source["configMapRef"]["name"]]
    return env | {one["name"]: one["value"] for one in container["env"]}


# Compose -----------------------------------------------------------------------------------------------------------------


def pairs(text: str) -> list[tuple[str, str]]:
    """The lines NAME=value of a file for the environment."""
    lines = [line.strip() for line in text.splitlines()]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines if line and not line.startswith("#"))]


def service(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """A service of compose.yaml, with the variables of its values put in."""
    found: dict[str, Any] = _filled(COMPOSE["services"][name], environ)
    return found


def _filled(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(one, environ) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, environ) for one in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{(\w+)(?::(-|\?)([^}]*))?\}", lambda found: _variable(found, environ), value)


def _variable(found: re.Match[str], environ: Mapping[str, str]) -> str:
    value = environ.get(found[1], "")
    if not value and found[2] == "?":
        raise ValueError(f"{found[1]}: {found[3]}")
    return value or (found[3] or "")


# systemd -----------------------------------------------------------------------------------------------------------------


def unit(name: str) -> list[tuple[str, str]]:
    """The settings of a unit, in order."""
    return [(key, value) for key, value in pairs((DEPLOY / "systemd" / name).read_text("utf-8")) if not key.startswith("[")]
