"""The kinds that the stand-in serves, and the documents by which clients discover them."""

from __future__ import annotations

from dataclasses import dataclass

from .about import PLATFORM, VERSION
from .status import Object

VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One kind."""

    plural: str
    kind: str
    group: str = ""  # the core group has no name
    namespaced: bool = True
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        """Group and version, as objects and paths have them."""
        return f"{self.group}/v1" if self.group else "v1"


RESOURCES = {
    resource.plural: resource
    for resource in (
        Resource(plural="configmaps", kind="ConfigMap", short=("cm",)),
        Resource(plural="endpoints", kind="Endpoints", short=("ep",)),
        Resource(plural="events", kind="Event", short=("ev",)),
        Resource(plural="namespaces", kind="Namespace", namespaced=False, short=("ns",), subresources=("status",)),
        Resource(plural="nodes", kind="Node", namespaced=False, short=("no",), subresources=("status",)),
        Resource(
            plural="pods",
            kind="Pod",
            short=("po",),
            categories=("all",),
            subresources=("attach", "exec", "log", "status"),
        ),
        Resource(plural="secrets", kind="Secret"),
        Resource(plural="serviceaccounts", kind="ServiceAccount", short=("sa",)),
        Resource(plural="services", kind="Service", short=("svc",), categories=("all",), subresources=("status",)),
        Resource(plural="addons", kind="Addon", group="k3s.cattle.io"),
        # Stored, so that manifests with them are taken; nothing is ever installed.
        Resource(plural="helmcharts", kind="HelmChart", group="helm.cattle.io"),
        Resource(plural="helmchartconfigs", kind="HelmChartConfig", group="helm.cattle.io"),
    )
}
GROUPS = sorted({resource.group for resource in RESOURCES.values() if resource.group})

_SUBRESOURCE_VERBS = {
    "status": ["get", "patch", "update"],
    "log": ["get"],
    "exec": ["create", "get"],
    "attach": ["create", "get"],
}


def version_info() -> Object:
    """What /version says; kubectl compares major and minor with its own."""
    major, minor = VERSION.removeprefix("v").split("+")[0].split(".")[:2]
    return {
        "major": major,
        "minor": minor,
        "gitVersion": VERSION,
        "gitCommit": "standin",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "none",
        "platform": PLATFORM,
    }


def discovery(path: str) -> Object | None:
    """The discovery document at a path; None when there is none."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name) for name in GROUPS]}
    prefixes = {"/api/v1": "", **{f"/apis/{name}/v1": name for name in GROUPS}}
    if path in prefixes:
        version = path.removeprefix("/api/").removeprefix("/apis/")
        return {"kind": "APIResourceList", "groupVersion": version, "resources": _listed(prefixes[path])}
    if path == "/openapi/v3":
        return {
            "paths": {
                prefix.strip("/"): {"serverRelativeURL": f"/openapi/v3{prefix}?hash=standin"} for prefix in prefixes
            }
        }
    if path.startswith("/openapi/v3/") and (prefix := path.removeprefix("/openapi/v3")) in prefixes:
        return _openapi(prefix, prefixes[prefix])
    return None


def _group(name: str) -> Object:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


def _listed(group: str) -> list[Object]:
    entries: list[Object] = []
    for resource in RESOURCES.values():
        if resource.group != group:
            continue
        entry: Object = {
            "name": resource.plural,
            "singularName": resource.kind.lower(),
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": VERBS,
            "shortNames": list(resource.short),
            "categories": list(resource.categories),
        }
        entries.append({key: value for key, value in entry.items() if value != []})
        for name in resource.subresources:
            entries.append(
                {
                    "name": f"{resource.plural}/{name}",
                    "singularName": "",
                    "namespaced": resource.namespaced,
                    "kind": resource.kind if name in ("status", "log") else f"Pod{name.title()}Options",
                    "verbs": _SUBRESOURCE_VERBS[name],
                }
            )
    return entries


def _openapi(prefix: str, group: str) -> Object:
    """Name each kind's PATCH with its fieldValidation parameter: this tells kubectl that the server validates."""
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths: Object = {}
    for resource in RESOURCES.values():
        if resource.group != group:
            continue
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        group_version_kind = {"group": group, "version": "v1", "kind": resource.kind}
        operation = {
            "parameters": [parameter],
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": group_version_kind,
            "responses": {"200": {"description": "OK"}},
        }
        paths[f"{prefix}{scope}/{resource.plural}/{{name}}"] = {"patch": operation}
    return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": VERSION}, "paths": paths, "components": {}}
