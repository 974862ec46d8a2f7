"""All nodes by name, and which node a pod goes to."""

from __future__ import annotations

import contextlib
import socket
import threading
from functools import partial

from . import tunnel
from .certs import Certificates
from .config import Config
from .engine import Engine
from .errors import ApiError, Object
from .node import CONTROL_PLANE, Node
from .store import Store

SCHEDULE_SECONDS = 5.0


class Nodes:
    """All nodes that run pods."""

    def __init__(self, store: Store, certificates: Certificates) -> None:
        self._store = store
        self._certificates = certificates
        self._known: dict[str, Node] = {}
        self._lock = threading.Lock()

    def start_own(self, config: Config, engine: Engine, address: str) -> None:
        """Start the server's node, and those of the agents that joined earlier."""
        own = self._known[config.node_name] = Node(self._store, config.node_name, engine, config)
        own.register(address)
        own.start()
        for node in self._store.find("nodes")[0]:
            if CONTROL_PLANE not in node["metadata"].get("labels", {}):
                self._agent(node["metadata"]["name"])

    def join(self, name: str, address: str) -> None:
        """Register the node of an agent, whose tunnel is at that address."""
        self._agent(name).register(address)

    def engine(self, pod: Object) -> Engine:
        """Return the dockerd that runs a pod. Raises ApiError."""
        node = self._known.get(pod["spec"].get("nodeName", ""))
        if node is None:
            raise ApiError(400, f'pod "{pod["metadata"]["name"]}" is waiting for a node')
        return node.engine

    def _agent(self, name: str) -> Node:
        with self._lock:
            if name not in self._known:
                self._known[name] = Node(self._store, name, Engine(partial(self._dial, name)))
                self._known[name].start()
            return self._known[name]

    def _dial(self, name: str, timeout: float | None) -> socket.socket:
        try:
            addresses = self._store.get("nodes", "", name)["status"]["addresses"]
        except ApiError as error:
            raise OSError(str(error)) from None
        address = next(entry["address"] for entry in addresses if entry["type"] == "InternalIP")
        return tunnel.connect(name, address, self._certificates, timeout)


def schedule(store: Store, own_node: str) -> None:
    """Place pods whenever an object changes; never ends."""
    while True:
        version = store.version
        place(store, own_node)
        store.changes(version, timeout=SCHEDULE_SECONDS)


def place(store: Store, own_node: str) -> None:
    """Give every pod without a node a Ready one that has its labels, preferably the server's own."""
    ready = list(filter(is_ready, store.find("nodes")[0]))
    for pod in store.find("pods")[0]:
        selector = pod["spec"].get("nodeSelector") or {}
        fitting = [node["metadata"]["name"] for node in ready if selector.items() <= node["metadata"]["labels"].items()]
        if fitting and not pod["spec"].get("nodeName"):
            spec = {**pod["spec"], "nodeName": own_node if own_node in fitting else fitting[0]}
            with contextlib.suppress(ApiError):  # the pod was deleted
                key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
                store.modify("pods", *key, lambda old, spec=spec: {**old, "spec": spec})  # type: ignore[misc]


def is_ready(node: Object) -> bool:
    """Return whether the node has reported that it is Ready."""
    conditions = node.get("status", {}).get("conditions") or []  # none until the node has reported
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def own_address() -> str:
    """Return the address of the default route's interface, without sending a packet; loopback without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1, reserved for documentation
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def own_addresses() -> list[str]:
    """Return the addresses by which clients may reach this machine: its route's and its hostname's."""
    addresses = {own_address()}
    with contextlib.suppress(OSError):  # a hostname that does not resolve adds none
        addresses |= {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(socket.gethostname(), None)}
    return sorted(addresses)
