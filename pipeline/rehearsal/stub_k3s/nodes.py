"""Nodes: their objects in the store, their dockerd, and which node a pod goes to.

The server does a kubelet's work for all nodes: for its own, and through a tunnel for the agents'.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from functools import partial
from pathlib import Path

from . import containers, log, tunnel
from .about import PLATFORM, VERSION
from .certs import Certificates
from .config import Config
from .engine import RETRY_SECONDS, Engine, EngineGone, EngineRefused
from .errors import ApiError, Object
from .kubelet import allocatable
from .pods import Machine, Pods
from .podstatus import ready_condition
from .process import in_background, shut_down
from .store import Store

KUBELET_SECONDS = 1.5  # until a kubelet refuses its configuration: it starts once the API server is ready
START_SECONDS = 10.0  # after about this time k3s gives up on a dockerd that does not answer
SCHEDULE_SECONDS = 5.0

_CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
_EVENTS = {"type": ["container", "image"], "event": ["create", "start", "die", "destroy", "load", "pull", "tag"]}


class Node:
    """One node: the server's own, or without a configuration an agent's."""

    def __init__(self, store: Store, name: str, engine: Engine, config: Config | None = None) -> None:
        self.engine = engine
        self._store = store
        self._name = name
        self._config = config
        self._problem: str | None = None  # the last one that was logged
        machine = Machine(
            store=store,
            engine=engine,
            node_name=name,
            kubelet_dir=config.kubelet_dir if config else None,
            resolver=containers.resolver(config.resolv_conf) if config and config.resolv_conf else {},
        )
        self._pods = Pods(machine)

    def register(self, address: str) -> None:
        """Create the Node object, or update the one of an earlier start."""
        labels = {
            "kubernetes.io/arch": PLATFORM.partition("/")[2],
            "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": self._name,
            **({_CONTROL_PLANE: "true"} if self._config else {}),
            "dind-k3s.io/stub": "true",
        }
        addresses = [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": self._name}]
        new = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": self._name, "labels": {}}, "spec": {}}
        with contextlib.suppress(ApiError):  # it exists from an earlier start
            self._store.create("nodes", new)

        def describe(node: Object) -> Object:
            node["metadata"]["labels"] |= labels
            node["status"] = {**node.get("status", {}), "addresses": addresses}
            return node

        self._store.modify("nodes", "", self._name, describe)
        log.say(f"node {self._name} is registered with {address}")

    def start(self) -> None:
        """Run pods, and report whether dockerd answers, in threads that never end."""
        in_background("kubelet", self._pods.follow)
        in_background("engine", self._follow_engine)

    def _follow_engine(self) -> None:
        while True:
            problem = "its event stream ended"
            try:
                since = int(time.time()) - 1  # so that no event is lost between `resume` and the stream
                self._report("")
                self._pods.resume()
                for event in self.engine.events("GET", "/events", filters=_EVENTS, since=since):
                    self._pods.on_event(event)
            except (EngineGone, EngineRefused, ApiError) as error:
                problem = str(error)
            if not self.engine.answers():
                with contextlib.suppress(ApiError):  # the node was deleted
                    self._report(f"dockerd does not answer: {problem}")
            time.sleep(RETRY_SECONDS)

    def _report(self, problem: str) -> None:
        """Set the condition Ready, and while dockerd answers size and versions. Raises ApiError for a deleted node."""
        facts = {} if problem else self._facts()

        def change(node: Object) -> Object:
            status = {**node.get("status", {}), **facts}
            return {**node, "status": {**status, "conditions": [ready_condition(status, problem)]}}

        self._store.modify("nodes", "", self._name, change)
        if problem != self._problem:
            self._problem = problem
            log.say(f"node {self._name} is {f'not ready: {problem}' if problem else 'ready'}")

    def _facts(self) -> Object:
        info = self.engine.call("GET", "/info")
        size = {"cpu": str(info["NCPU"]), "memory": f"{info['MemTotal'] // 1024}Ki", "pods": "110"}
        machine = Path("/etc/machine-id")  # made by our image's start; a container by hand has none
        return {
            "capacity": size,
            "allocatable": allocatable(size, self._config.kubelet.get("systemReserved", {}) if self._config else {}),
            "nodeInfo": {
                "machineID": machine.read_text(encoding="ascii").strip() if machine.exists() else "",
                "architecture": PLATFORM.partition("/")[2],
                "operatingSystem": "linux",
                "kubeletVersion": VERSION,
                "containerRuntimeVersion": f"docker://{info['ServerVersion']}",
            },
        }


class Nodes:
    """All nodes that run pods, by name."""

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
            if _CONTROL_PLANE not in node["metadata"].get("labels", {}):
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


def start_kubelet(config: Config) -> Engine:
    """Return this machine's dockerd; without it, or if the kubelet refuses its configuration, end the process."""
    if config.kubelet_refusal:
        time.sleep(KUBELET_SECONDS)
        shut_down(f"kubelet exited: {config.kubelet_refusal}")
    engine = Engine.local(config.docker_socket)
    if not engine.answers(within=START_SECONDS):
        shut_down(f"failed to start container runtime: dockerd does not answer on {config.docker_socket}")
    return engine


def schedule(store: Store, own_node: str) -> None:
    """Place pods whenever an object changes; never ends."""
    while True:
        version = store.version
        place(store, own_node)
        with contextlib.suppress(ApiError):
            store.changes(version, timeout=SCHEDULE_SECONDS)


def place(store: Store, own_node: str) -> None:
    """Give every pod without a node a Ready one that has its labels, preferably the server's own."""
    nodes = store.find("nodes")[0]
    for pod in store.find("pods")[0]:
        selector = pod["spec"].get("nodeSelector") or {}
        fitting = [node["metadata"]["name"] for node in nodes if _fits(node, selector)]
        if fitting and not pod["spec"].get("nodeName"):
            spec = {**pod["spec"], "nodeName": own_node if own_node in fitting else fitting[0]}
            with contextlib.suppress(ApiError):  # the pod was deleted
                key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
                store.modify("pods", *key, lambda old, spec=spec: {**old, "spec": spec})  # type: ignore[misc]


def _fits(node: Object, selector: dict[str, str]) -> bool:
    conditions = node.get("status", {}).get("conditions") or []  # none until the node has reported
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and selector.items() <= (node["metadata"].get("labels") or {}).items()


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
