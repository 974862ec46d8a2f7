"""What an object must have before it is stored: a good name, the defaults of its kind, an address for a service.

Defaults are those of kubernetes pkg/apis/core/v1/defaults.go, as far as clients show or use them.
"""

from __future__ import annotations

import base64
import copy
import re
import secrets
from ipaddress import IPv4Network

from .resources import Resource
from .status import ApiError, Object, invalid
from .store import Store

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_GENERATED = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, so no words; as kubernetes does
_NOT_RUN = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle")


class Admission:
    """Checks and completes objects; `warnings` are what clients print."""

    def __init__(self, store: Store, *, service_cidr: IPv4Network) -> None:
        self._store = store
        self._service_cidr = service_cidr

    def create(self, resource: Resource, namespace: str, thing: Object) -> tuple[Object, list[str]]:
        """Complete a new object."""
        wanted = resource.api_version
        thing = {"apiVersion": wanted, "kind": resource.kind, **thing}
        if thing["kind"] != resource.kind or thing["apiVersion"] != wanted:
            found = f"{thing['kind']} of {thing['apiVersion']}"
            raise ApiError(400, f"expected a {resource.kind} of {wanted}, found {found}")
        metadata = thing.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + "".join(secrets.choice(_GENERATED) for _ in range(5))
        check_name(resource, metadata.get("name") or "")
        if resource.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                raise ApiError(
                    400, "the namespace of the provided object does not match the namespace sent on the request"
                )
            state = self._store.get("namespaces", "", namespace).get("status", {}).get("phase")
            if state == "Terminating":
                raise ApiError(403, f"namespace {namespace} is being terminated and takes no new objects")
        if resource.plural == "pods":
            return thing, self._pod(thing)
        if resource.plural == "services":
            return thing, self._service(thing)
        if resource.plural == "namespaces":
            metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata["name"]
            thing["spec"] = {"finalizers": ["kubernetes"]}
            thing["status"] = {"phase": "Active"}
        if resource.plural == "secrets":
            _secret(thing)
        return thing, []

    def update(self, resource: Resource, before: Object, after: Object) -> Object:
        """Complete a changed object: its status stays, and so does what a pod is made of."""
        after = copy.deepcopy(after)
        for field in ("apiVersion", "kind", "status"):
            if field in before:
                after[field] = before[field]
        metadata = after.setdefault("metadata", {})
        for field in ("deletionTimestamp", "deletionGracePeriodSeconds"):
            if field in before["metadata"]:
                metadata[field] = before["metadata"][field]
        if resource.plural == "pods":
            complete_pod_spec(after.setdefault("spec", {}))
            if after["spec"] != before["spec"]:
                why = "Forbidden: the stand-in makes no pod anew; delete it and create another"
                raise invalid("Pod", before["metadata"]["name"], "spec", why)
        if resource.plural == "services":
            after["spec"] = {**after.get("spec", {}), "clusterIP": before["spec"].get("clusterIP")}
            self._service(after)
        if resource.plural == "secrets":
            _secret(after)
        return after

    def _pod(self, pod: Object) -> list[str]:
        name, spec = pod["metadata"]["name"], pod.setdefault("spec", {})
        containers = spec.get("containers") or []
        if not containers:
            raise invalid("Pod", name, "spec.containers", "Required value")
        everything = [*(spec.get("initContainers") or []), *containers]
        names = [container.get("name") or "" for container in everything]
        for container in everything:
            if not _LABEL.fullmatch(container.get("name") or ""):
                raise invalid("Pod", name, "spec.containers.name", f"Invalid value: {container.get('name')!r}")
            if not container.get("image"):
                raise invalid("Pod", name, f"spec.containers[{container['name']}].image", "Required value")
        if len(set(names)) != len(names):
            raise invalid("Pod", name, "spec.containers.name", "Duplicate value")
        complete_pod_spec(spec)
        if spec["restartPolicy"] not in ("Always", "OnFailure", "Never"):
            raise invalid("Pod", name, "spec.restartPolicy", f"Unsupported value: {spec['restartPolicy']!r}")
        pod["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
        idle = sorted({field for container in everything for field in _NOT_RUN if container.get(field)})
        return [f"the stand-in does not act on {', '.join(idle)}"] if idle else []

    def _service(self, service: Object) -> list[str]:
        name, spec = service["metadata"]["name"], service.setdefault("spec", {})
        kind = spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        if kind != "ExternalName":
            if not spec.get("ports") and spec.get("clusterIP") != "None":
                raise invalid("Service", name, "spec.ports", "Required value")
            if not spec.get("clusterIP"):
                spec["clusterIP"] = self._free_address()
            spec["clusterIPs"] = [spec["clusterIP"]]
            spec.setdefault("ipFamilies", ["IPv4"])
            spec.setdefault("ipFamilyPolicy", "SingleStack")
            spec.setdefault("internalTrafficPolicy", "Cluster")
        for entry in spec.get("ports") or []:
            entry.setdefault("protocol", "TCP")
            entry.setdefault("targetPort", entry.get("port"))
            if kind in ("NodePort", "LoadBalancer") and not entry.get("nodePort"):
                entry["nodePort"] = self._free_port()
        service.setdefault("status", {"loadBalancer": {}})
        return ["the stand-in stores services and does not route them"]

    def _free_address(self) -> str:
        taken = {service["spec"].get("clusterIP") for service in self._store.find("services")[0]}
        for number, address in enumerate(self._service_cidr.hosts()):
            # .1 is the API's own service and .10 is where k3s puts its DNS.
            if number not in (0, 9) and str(address) not in taken:
                return str(address)
        raise ApiError(500, f"no address is left in {self._service_cidr}")

    def _free_port(self) -> int:
        services = self._store.find("services")[0]
        taken = {entry.get("nodePort") for service in services for entry in service["spec"].get("ports") or []}
        return next(port for port in range(30000, 32768) if port not in taken)


def check_name(resource: Resource, name: str) -> None:
    """Refuse a name that kubernetes would refuse."""
    pattern = _LABEL if resource.plural in ("namespaces", "services") else _SUBDOMAIN
    if not name:
        raise invalid(resource.kind, name, "metadata.name", "Required value: name or generateName is required")
    if not pattern.fullmatch(name):
        why = f"Invalid value: {name!r}: a name is of lower case letters, digits and '-', with no '-' at its ends"
        raise invalid(resource.kind, name, "metadata.name", why)


def complete_pod_spec(spec: Object) -> None:
    """Fill in the defaults of a pod."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("serviceAccount", spec["serviceAccountName"])
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        last = container.get("image", "").rpartition("/")[2]
        newest = "@" not in last and (":" not in last or last.endswith(":latest"))
        container.setdefault("imagePullPolicy", "Always" if newest else "IfNotPresent")
        container.setdefault("resources", {})
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        for entry in container.get("ports") or []:
            entry.setdefault("protocol", "TCP")


def _secret(secret: Object) -> None:
    secret.setdefault("type", "Opaque")
    for key, text in (secret.pop("stringData", None) or {}).items():
        secret.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode("ascii")
