"""The Kubernetes API: who may ask, and which request means what.

Nobody is let in without a client certificate: k3s starts its API server with `anonymous-auth=false`
(pkg/daemons/control/server.go), health included; only its own /cacerts is open.
"""

from __future__ import annotations

import json

from . import forward, rest, streams, table, watch
from .certs import Certificates
from .engine import Engine
from .httpd import Exchange, Listener
from .joining import PREFIX, Joining
from .resources import RESOURCES, Resource, discovery
from .selectors import Selector
from .status import ApiError, Object
from .store import Store

KUBELET_PORT = 10250


class Server(Listener):
    """The API server."""

    def __init__(self, address: tuple[str, int], certificates: Certificates, store: Store, joining: Joining) -> None:
        super().__init__(*address, certificates, Api)
        self.store = store
        self.joining = joining
        self.certificates = certificates
        self.ready = False
        self.node_name = ""  # whose pods have their logs here
        self.engine: Engine | None = None
        self.kubelet: Object = {}  # this node's settings, in force


class Kubelet(Listener):
    """A node's own listener, from which the server gets logs and output of commands."""

    def __init__(self, address: str, certificates: Certificates, store: Store, engine: Engine) -> None:
        super().__init__(address, KUBELET_PORT, certificates, KubeletApi)
        self.store = store
        self.engine = engine


class Api(Exchange):
    """Requests to the API server."""

    server: Server

    def respond(self) -> None:
        """Answer one request."""
        path = "/" + "/".join(self.parts)
        if path == "/cacerts":
            return self.send_bytes(200, self.server.certificates.server_ca.read_bytes())
        if path.startswith(PREFIX):
            return self.send_bytes(200, self.server.joining.answer(path, self.headers))
        self.require_certificate()
        match self.parts:
            case ["api", "v1", *parts] if parts:
                return self._resource("", parts)
            case ["apis", group, "v1", *parts] if parts:
                return self._resource(group, parts)
            case ["readyz"]:
                good = self.server.ready
                return self.send_bytes(200 if good else 500, b"ok" if good else b"the node is not started yet")
        document = discovery(path)
        if document is None:
            raise ApiError(404, "the server could not find the requested resource")
        return self.send_json(200, document)

    def _resource(self, group: str, parts: list[str]) -> None:
        if parts[:1] == ["nodes"] and parts[2:] == ["proxy", "configz"]:
            return self.send_json(200, {"kubeletconfig": self.server.kubelet})
        namespace: str | None = None
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        resource = RESOURCES.get(parts[0])
        if resource is None or resource.group != group or (len(parts) > 1 and resource.namespaced and not namespace):
            raise ApiError(404, "the server could not find the requested resource")
        if len(parts) == 1:
            return self._collection(resource, namespace)
        return self._object(resource, namespace or "", parts[1], "/".join(parts[2:]))

    def _collection(self, resource: Resource, namespace: str | None) -> None:
        store, query = self.server.store, self.query
        if self.command == "POST":
            return self._send(201, resource, rest.create(store, resource, namespace or "", self.document()))
        if self.command != "GET":
            raise ApiError(405, "the server does not allow this method on the requested resource")
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        selector = Selector(namespace=namespace, labels=labels, fields=fields)
        if query.get("watch") in ("true", "1"):
            events = watch.follow(store, resource, selector, query, self.client_is_there)
            return self.send_stream("application/json", (json.dumps(event).encode() + b"\n" for event in events))
        things, version = store.find(resource.plural, namespace)
        things = [thing for thing in things if selector.matches(thing)]
        if self._wants_table():
            return self.send_json(200, table.render(resource.plural, things, str(version)))
        listed = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version}
        return self.send_json(200, {**listed, "metadata": {"resourceVersion": str(version)}, "items": things})

    def _object(self, resource: Resource, namespace: str, name: str, subresource: str) -> None:
        store, key = self.server.store, (resource, namespace, name)
        if subresource not in ("", *resource.subresources):
            raise ApiError(404, f"the stub has no {resource.plural}/{subresource}")
        if subresource in ("log", "exec"):
            pod = store.get("pods", namespace, name)
            if self.server.engine and pod["spec"].get("nodeName") in (None, self.server.node_name):
                return streams.answer(self, self.server.engine, pod, subresource, self.queries)
            return forward.to_node(self, store, self.server.certificates, pod, KUBELET_PORT)
        given = self.document()
        match self.command:
            case "GET":
                thing = store.get(resource.plural, namespace, name)
            case "DELETE":
                return self.send_json(200, rest.delete(store, *key, given))
            case "PUT":
                thing = rest.update(store, *key, lambda _: given)
            case "PATCH":
                media_type = self.headers.get("Content-Type") or ""
                thing = rest.update(store, *key, lambda old: rest.patched(media_type, old, given))
            case _:
                raise ApiError(405, "the server does not allow this method on the requested resource")
        return self._send(200, resource, thing)

    def _wants_table(self) -> bool:
        first, *_ = (self.headers.get("Accept") or "").split(",")
        return "as=Table" in first and "v=v1;" in first + ";"

    def _send(self, code: int, resource: Resource, thing: Object) -> None:
        if self._wants_table():
            thing = table.render(resource.plural, [thing], thing["metadata"]["resourceVersion"])
        self.send_json(code, thing)


class KubeletApi(Exchange):
    """Requests of the server for the log of a pod, or for the output of a command in it."""

    server: Kubelet

    def respond(self) -> None:
        """Answer one request."""
        self.require_certificate()
        match self.parts:
            case ["api", "v1", "namespaces", namespace, "pods", name, ("log" | "exec") as subresource]:
                pod = self.server.store.get("pods", namespace, name)
                streams.answer(self, self.server.engine, pod, subresource, self.queries)
            case _:
                raise ApiError(404, "this is a kubelet")
