"""The Kubernetes API: authentication, and the routes of its requests.

Every request needs a client certificate, health checks too, since k3s starts its API server with
`anonymous-auth=false` (pkg/daemons/control/server.go); only its own /cacerts is open.
"""

from __future__ import annotations

import json
import select
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import rest, streams, table, watch
from .agents import PREFIX, Joining
from .certs import Certificates
from .errors import ApiError, Object
from .nodes import Nodes
from .resources import RESOURCES, Resource, discovery
from .store import Store
from .tunnel import GONE, Listener
from .watch import Selector


class Server(Listener):
    """The API server."""

    def __init__(
        self, address: tuple[str, int], certificates: Certificates, store: Store, joining: Joining, nodes: Nodes
    ) -> None:
        super().__init__(*address, certificates, Api)
        self.store = store
        self.joining = joining
        self.nodes = nodes
        self.certificates = certificates
        self.ready = False
        self.kubelet: Object = {}  # settings of the server's node


class Api(BaseHTTPRequestHandler):
    """The requests of one connection to the API server."""

    server: Server
    connection: ssl.SSLSocket
    protocol_version = "HTTP/1.1"
    timeout = 600

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, as k3s."""

    def answer(self) -> None:
        """Answer one request, an ApiError by a `Status`."""
        url = urlsplit(self.path)
        self.parts = [unquote(part) for part in url.path.split("/") if part]
        self.queries = parse_qs(url.query, keep_blank_values=True)
        self.query = {key: values[-1] for key, values in self.queries.items()}
        try:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._respond("/" + "/".join(self.parts))
        except ApiError as error:
            self.send_json(error.code, error.to_object())
        except GONE:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def _respond(self, path: str) -> None:
        """Answer one request. Raises ApiError."""
        if path == "/cacerts":
            return self.send_bytes(200, self.server.certificates.server_ca.read_bytes())
        if path.startswith(PREFIX):
            return self.send_bytes(200, self.server.joining.answer(path, self.headers))
        if not self.connection.getpeercert():
            raise ApiError(401, "Unauthorized")
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
            return self.send_json(201, rest.create(store, resource, namespace or "", self._document()))
        if self.command != "GET":
            raise ApiError(405, "the server does not allow this method on the requested resource")
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        selector = Selector(namespace=namespace, labels=labels, fields=fields)
        if query.get("watch") in ("true", "1"):
            events = watch.follow(store, resource, selector, query, self._client_is_there)
            return self.send_stream("application/json", (json.dumps(event).encode() + b"\n" for event in events))
        things, version = store.find(resource.plural, namespace)
        things = [thing for thing in things if selector.matches(thing)]
        if resource.plural in table.COLUMNS and "as=Table" in (self.headers.get("Accept") or ""):
            return self.send_json(200, table.render(resource.plural, things))
        listed = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version}
        return self.send_json(200, {**listed, "metadata": {"resourceVersion": str(version)}, "items": things})

    def _object(self, resource: Resource, namespace: str, name: str, subresource: str) -> None:
        store, key = self.server.store, (resource.plural, namespace, name)
        if subresource not in ("", *resource.subresources):
            raise ApiError(404, f"the stub has no {resource.plural}/{subresource}")
        if subresource in ("log", "exec"):
            pod = store.get("pods", namespace, name)
            return streams.answer(self, self.server.nodes.engine(pod), pod, subresource, self.queries)
        given = self._document()
        match self.command:
            case "GET":
                thing = store.get(*key)
            case "DELETE":
                thing = rest.delete(store, *key, given)
            case "PUT":
                thing = store.modify(*key, lambda _: given)
            case "PATCH":
                media_type = self.headers.get("Content-Type") or ""
                thing = store.modify(*key, lambda old: rest.patched(media_type, old, given))
            case _:
                raise ApiError(405, "the server does not allow this method on the requested resource")
        return self.send_json(200, thing)

    def _document(self) -> Object:
        """Return the body as an object, empty without a body. Raises ApiError."""
        try:
            thing: Object = json.loads(self.body or b"{}")
        except ValueError as error:
            raise ApiError(415, f"the stub reads JSON only: {error}") from None
        return thing

    def _client_is_there(self) -> bool:
        """Return whether the client is connected; all that it can send during a long answer is its end."""
        return not select.select([self.connection], [], [], 0)[0]

    def send_json(self, code: int, thing: Object) -> None:
        """Answer with one JSON document."""
        self.send_bytes(code, json.dumps(thing).encode(), "application/json")

    def send_bytes(self, code: int, body: bytes, media_type: str = "text/plain") -> None:
        """Answer with a body of known length."""
        self.send_response(code)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_stream(self, media_type: str, chunks: Iterator[bytes]) -> None:
        """Answer with chunks as they arrive, and close the connection after them."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in filter(None, chunks):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")
