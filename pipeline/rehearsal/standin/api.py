"""The Kubernetes API over TLS: who may ask, which request means what, and the form of the answers.

Nobody is let in without a client certificate or the server's token: k3s starts its API server with
`anonymous-auth=false` (pkg/daemons/control/server.go), health included; only its own /ping and /cacerts are open.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import forward, log, patch, table, watch
from .about import VERSION
from .certs import Certificates, key_of
from .failure import Failure
from .joining import PREFIX, Joining
from .resources import RESOURCES, Resource, discovery, version_info
from .rest import Rest
from .selectors import Selector
from .status import ApiError, Object

MAX_BODY = 3 * 1024 * 1024  # the API server's own limit
GONE = (ConnectionError, ssl.SSLError, TimeoutError, BrokenPipeError)

# What the kubelet does with a pod's subresource; it answers through the handler.
PodHandler = Callable[["Handler", Object, dict[str, list[str]]], None]


class Server(ThreadingHTTPServer):
    """One listening socket, a thread for each connection."""

    daemon_threads = True

    def __init__(
        self,
        address: str,
        port: int,
        certificates: Certificates,
        token: str,
        rest: Rest,
        *,
        node_name: str,
        kubelet_only: bool = False,
    ) -> None:
        super().__init__((address, port), Handler, bind_and_activate=False)
        self.socket.close()
        try:
            if address == "0.0.0.0" and socket.has_dualstack_ipv6():
                self.socket = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
            else:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                self.socket = socket.create_server((address, port), family=family, backlog=128)
        except OSError as error:
            raise Failure(f"cannot listen on {address} port {port}: {error.strerror or error}") from None
        self.rest = rest
        self.token = token
        self.node_name = node_name  # whose pods' logs are to be had here
        self.kubelet_only = kubelet_only  # an agent's listener, which has nothing else
        self.joining: Joining | None = None
        self.certificates = certificates
        self.ca = certificates.server_ca.read_bytes()
        self.ready = False
        self.kubelet: Object = {}  # this node's, in force
        self.pod_handlers: dict[str, PodHandler] = {}
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.load_cert_chain(certificates.server, key_of(certificates.server))
        self._tls.load_verify_locations(certificates.client_ca)
        self._tls.verify_mode = ssl.CERT_OPTIONAL
        self._tls.set_alpn_protocols(["http/1.1"])

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread, so that a slow client delays nobody."""
        request.settimeout(15)
        try:
            tls = self._tls.wrap_socket(request, server_side=True)
        except (OSError, ValueError):
            return
        with tls:
            super().finish_request(tls, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Clients that hang up are no news; anything else is a bug and keeps its traceback."""
        import sys
        import traceback

        if not isinstance(sys.exception(), GONE):
            log.warn("a request ended in an error of the stand-in itself")
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One request after the other of one connection."""

    server: Server
    connection: ssl.SSLSocket
    protocol_version = "HTTP/1.1"
    server_version = f"standin/{VERSION}"
    sys_version = ""
    timeout = 600

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged; k3s does not log them, either."""

    def answer(self) -> None:
        """Answer one request, an error of it as a `Status`."""
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        try:
            body = self._body()
            try:
                self._route([unquote(part) for part in url.path.split("/") if part], query, body)
            except ApiError as error:
                self.send_json(error.code, error.to_object())
        except ApiError as error:  # the body could not be read, so the connection is of no more use
            self.close_connection = True
            self.send_json(error.code, error.to_object())
        except GONE:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            raise ApiError(400, "the stand-in reads no chunked requests")
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY:
            raise ApiError(413, f"the request is larger than {MAX_BODY} bytes", reason="RequestEntityTooLarge")
        return self.rfile.read(length) if length else b""

    def _route(self, parts: list[str], query: dict[str, list[str]], body: bytes) -> None:
        path = "/" + "/".join(parts)
        if path == "/ping":
            return self.send_bytes(200, b"pong", "text/plain")
        if path == "/cacerts":
            return self.send_bytes(200, self.server.ca, "text/plain")
        if path.startswith(PREFIX) and self.server.joining:
            return self.send_bytes(200, self.server.joining.answer(path, self.headers), "text/plain")
        self._authenticate()
        if parts[:2] == ["api", "v1"] and len(parts) > 2:
            return self._resource("", parts[2:], {key: values[-1] for key, values in query.items()}, query, body)
        if parts[:1] == ["apis"] and parts[2:3] == ["v1"] and len(parts) > 3:
            return self._resource(parts[1], parts[3:], {key: values[-1] for key, values in query.items()}, query, body)
        if self.command != "GET":
            raise ApiError(
                405, "the server does not allow this method on the requested resource", reason="MethodNotAllowed"
            )
        if parts and parts[0] in ("livez", "readyz", "healthz"):
            return self._health(parts[0], verbose="verbose" in query)
        if path == "/version":
            return self.send_json(200, version_info())
        document = discovery(path)
        if document is None:
            raise ApiError(404, "the server could not find the requested resource")
        return self.send_json(200, document)

    def _authenticate(self) -> None:
        scheme, _, credentials = (self.headers.get("Authorization") or "").partition(" ")
        by_token = (
            self.server.token != "" and scheme == "Bearer" and credentials.rpartition(":")[2] == self.server.token
        )
        if not self.connection.getpeercert() and not by_token:
            raise ApiError(401, "Unauthorized")

    def _health(self, name: str, *, verbose: bool) -> None:
        good = self.server.ready or name == "livez"
        text = "ok"
        if verbose or not good:
            text = f"[+]ping ok\n[{'+' if good else '-'}]node {'ok' if good else 'failed: not started yet'}\n"
            text += f"{name} check {'passed' if good else 'failed'}\n"
        self.send_bytes(200 if good else 500, text.encode(), "text/plain; charset=utf-8")

    def _resource(
        self, group: str, parts: list[str], query: dict[str, str], full_query: dict[str, list[str]], body: bytes
    ) -> None:
        namespace: str | None = None
        if self.server.kubelet_only and parts[4:] not in (["log"], ["exec"], ["attach"]):
            raise ApiError(404, "this is an agent")
        if parts[0] == "namespaces" and len(parts) > 2 and parts[2] in RESOURCES:
            namespace, parts = parts[1], parts[2:]
        resource = RESOURCES.get(parts[0])
        if parts[:1] == ["nodes"] and parts[2:] == ["proxy", "configz"]:
            return self.send_json(200, {"kubeletconfig": self.server.kubelet})
        if (
            resource is None
            or resource.group != group
            or len(parts) > 3
            or (namespace is not None and not resource.namespaced)
        ):
            raise ApiError(404, "the server could not find the requested resource")
        if query.get("dryRun"):
            raise ApiError(501, "the stand-in has no dry run on the server; kubectl has --dry-run=client")
        if len(parts) == 1:
            return self._collection(resource, namespace, query, body)
        if resource.namespaced and namespace is None:
            raise ApiError(404, "the server could not find the requested resource")
        return self._object(resource, namespace or "", parts[1], "".join(parts[2:]), query, full_query, body)

    def _collection(self, resource: Resource, namespace: str | None, query: dict[str, str], body: bytes) -> None:
        rest = self.server.rest
        selector = Selector(
            namespace=namespace, labels=query.get("labelSelector", ""), fields=query.get("fieldSelector", "")
        )
        if self.command == "POST":
            if resource.namespaced and namespace is None:
                raise ApiError(405, "a namespace is needed to create this", reason="MethodNotAllowed")
            created, warnings = rest.create(resource, namespace or "", _object(body))
            return self._send_things(201, resource, created, warnings=warnings)
        if self.command == "DELETE":
            things, _ = rest.find(resource, selector)
            for thing in things:
                metadata = thing["metadata"]
                rest.delete(resource, metadata.get("namespace", ""), metadata["name"], _object(body) if body else {})
            return self.send_json(
                200,
                {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": {}, "items": things},
            )
        if self.command != "GET":
            raise ApiError(405, "the server does not allow this method on the requested resource")
        if query.get("watch") in ("true", "1"):
            events = watch.follow(rest.store, resource.plural, resource.kind, selector, query, self.client_is_there)
            return self._stream(self._rows(event, resource) for event in events)
        things, version = rest.find(resource, selector)
        if include := self._wants_table():
            return self.send_json(200, table.render(resource.plural, things, version, include))
        metadata = {"resourceVersion": version}
        return self.send_json(
            200,
            {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata, "items": things},
        )

    def _object(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        subresource: str,
        query: dict[str, str],
        full_query: dict[str, list[str]],
        body: bytes,
    ) -> None:
        rest = self.server.rest
        if subresource not in ("", *resource.subresources):
            raise ApiError(501, f"the stand-in has no {resource.plural}/{subresource}")
        if subresource in ("log", "exec", "attach"):
            pod = rest.store.get("pods", namespace, name)
            if pod["spec"].get("nodeName") not in (None, self.server.node_name):
                return forward.to_node(self, pod, body)
            return self.server.pod_handlers[subresource](self, pod, full_query)
        if self.command == "GET":
            return self._send_things(200, resource, rest.store.get(resource.plural, namespace, name))
        if self.command == "DELETE":
            options = _object(body) if body else {}
            if "gracePeriodSeconds" in query:
                options["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
            return self.send_json(200, rest.delete(resource, namespace, name, options))
        if self.command == "PUT":
            new = _object(body)
            return self._send_things(
                200, resource, rest.update(resource, namespace, name, lambda _: new, subresource=subresource)
            )
        if self.command == "PATCH":
            media_type = (self.headers.get("Content-Type") or "").partition(";")[0].strip()
            changes = _json(body)
            changed = rest.update(
                resource,
                namespace,
                name,
                lambda old: patch.apply(media_type, old, changes),
                subresource=subresource,
            )
            return self._send_things(200, resource, changed)
        raise ApiError(405, "the server does not allow this method on the requested resource")

    def _wants_table(self) -> str:
        """How much of each object a table's rows should have; empty when no table is asked for."""
        for choice in (self.headers.get("Accept") or "").split(","):
            if "as=Table" in choice and "v=v1;" in choice + ";":
                return (parse_qs(urlsplit(self.path).query).get("includeObject") or ["Metadata"])[0]
            if choice.strip() in ("application/json", "*/*"):
                return ""
        return ""

    def _rows(self, event: Object, resource: Resource) -> Object:
        include = self._wants_table()
        if not include or event["type"] in ("ERROR", "BOOKMARK"):
            return event
        return {"type": event["type"], "object": table.render(resource.plural, [event["object"]], None, include)}

    def client_is_there(self) -> bool:
        """Whether the client still listens: one that has nothing more to ask only ever sends its goodbye."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return not readable

    def _send_things(self, code: int, resource: Resource, thing: Object, warnings: list[str] | None = None) -> None:
        if include := self._wants_table():
            thing = table.render(resource.plural, [thing], thing["metadata"]["resourceVersion"], include)
        headers = [("Warning", f"299 - {json.dumps(warning)}") for warning in warnings or []]
        self.send_bytes(code, json.dumps(thing).encode(), "application/json", headers)

    def send_json(self, code: int, thing: Object) -> None:
        """Answer with one JSON document."""
        self.send_bytes(code, json.dumps(thing).encode(), "application/json")

    def send_bytes(self, code: int, body: bytes, media_type: str, headers: list[tuple[str, str]] | None = None) -> None:
        """Answer with a body of known length."""
        self.send_response(code)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers or []:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: Iterator[Object]) -> None:
        self.send_stream("application/json", (json.dumps(event).encode() + b"\n" for event in events))

    def send_stream(self, media_type: str, chunks: Iterator[bytes]) -> None:
        """Answer with chunks as they come; the connection ends with them."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            if chunk:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise ApiError(415, f"the stand-in reads JSON only: {error}") from None


def _object(body: bytes) -> Object:
    thing = _json(body)
    if not isinstance(thing, dict):
        raise ApiError(400, "expected one object")
    return thing
