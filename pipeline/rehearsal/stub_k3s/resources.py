"""The kinds that the stub serves, and the discovery documents about them."""

from __future__ import annotations

from dataclasses import dataclass

from .about import PLATFORM, VERSION
from .errors import Object

VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One kind of objects."""

    plural: str
    kind: str
    group: str = ""  # empty: the core group
    namespaced: bool = True
    subresources: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        """Return group and version, as in objects and paths."""
        return f"{self.group}/v1" if self.group else "v1"


RESOURCES = {
    resource.plural: resource
    for resource in (
        Resource(plural="configmaps", kind="ConfigMap"),
        Resource(plural="endpoints", kind="Endpoints"),
        Resource(plural="events", kind="Event"),
        Resource(plural="namespaces", kind="Namespace", namespaced=False),
        Resource(plural="nodes", kind="Node", namespaced=False, subresources=("status",)),
        Resource(plural="pods", kind="Pod", subresources=("exec", "log", "status")),
        Resource(plural="secrets", kind="Secret"),
        Resource(plural="serviceaccounts", kind="ServiceAccount"),
        Resource(plural="services", kind="Service"),
        Resource(plural="addons", kind="Addon", group="k3s.cattle.io"),
        # Only stored, so that manifests with them are accepted.
        Resource(plural="helmcharts", kind="HelmChart", group="helm.cattle.io"),
        Resource(plural="helmchartconfigs", kind="HelmChartConfig", group="helm.cattle.io"),
    )
}
_PREFIXES = {
    ("/apis/" + resource.group if resource.group else "/api") + "/v1": resource.group for resource in RESOURCES.values()
}


def discovery(path: str) -> Object | None:
    """Return the discovery document at a path; None if there is none."""
    if path == "/version":
        # kubectl compares major and minor with its own.
        major, minor = VERSION.removeprefix("v").split(".")[:2]
        return {"major": major, "minor": minor, "gitVersion": VERSION, "platform": PLATFORM}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        groups = [_group(name) for name in _PREFIXES.values() if name]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path in _PREFIXES:
        version = path.removeprefix("/api/").removeprefix("/apis/")
        return {"kind": "APIResourceList", "groupVersion": version, "resources": _listed(_PREFIXES[path])}
    if path == "/openapi/v3":
        return {"paths": {prefix.strip("/"): {"serverRelativeURL": "/openapi/v3/all"} for prefix in _PREFIXES}}
    return _openapi() if path == "/openapi/v3/all" else None


def _group(name: str) -> Object:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


def _listed(group: str) -> list[Object]:
    entries: list[Object] = []
    for resource in RESOURCES.values():
        if resource.group == group:
            entry: Object = {"singularName": resource.kind.lower(), "namespaced": resource.namespaced}
            entry |= {"kind": resource.kind, "verbs": VERBS}
            names = [resource.plural, *(f"{resource.plural}/{name}" for name in resource.subresources)]
            entries += [{**entry, "name": name} for name in names]
    return entries


def _openapi() -> Object:
    """Describe each kind's PATCH with the parameter fieldValidation: kubectl then leaves validation to the server."""
    paths: Object = {}
    for resource in RESOURCES.values():
        operation = {
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": {"group": resource.group, "version": "v1", "kind": resource.kind},
            "responses": {"200": {"description": "OK"}},
        }
        paths[f"/{resource.plural}/{{name}}"] = {"patch": operation}
    return {"openapi": "3.0.0", "info": {"title": "stub", "version": VERSION}, "paths": paths, "components": {}}
