"""The kinds that the stand-in serves, and the documents by which clients discover them."""

from __future__ import annotations

from dataclasses import dataclass

from .about import PLATFORM, VERSION
from .status import Object

VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One kind of the core group."""

    plural: str
    kind: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()


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
    )
}

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
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": []}
    if path == "/api/v1":
        return {"kind": "APIResourceList", "groupVersion": "v1", "resources": _listed()}
    if path == "/openapi/v3":
        return {"paths": {"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=standin"}}}
    if path == "/openapi/v3/api/v1":
        return _openapi()
    return None


def _listed() -> list[Object]:
    entries: list[Object] = []
    for resource in RESOURCES.values():
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


def _openapi() -> Object:
    """Name each kind's PATCH with its fieldValidation parameter: this tells kubectl that the server validates."""
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths: Object = {}
    for resource in RESOURCES.values():
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        group_version_kind = {"group": "", "version": "v1", "kind": resource.kind}
        operation = {
            "parameters": [parameter],
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": group_version_kind,
            "responses": {"200": {"description": "OK"}},
        }
        paths[f"/api/v1{scope}/{resource.plural}/{{name}}"] = {"patch": operation}
    return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": VERSION}, "paths": paths, "components": {}}
