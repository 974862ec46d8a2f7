"""The node: what it is, and whether dockerd answers."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from . import log
from .about import PLATFORM, VERSION
from .config import Config
from .engine import Engine, EngineGone, EngineRefused
from .kubelet import allocatable
from .pods import Pods
from .podstatus import ready_condition
from .status import ApiError, Object
from .store import Store

START_SECONDS = 10.0  # k3s gives up on a dockerd that does not answer after about this time
RETRY_SECONDS = 0.25

_EVENTS = {"type": ["container", "image"], "event": ["create", "start", "die", "destroy", "load", "pull", "tag"]}


class Node:
    """Keeps the Node object true."""

    def __init__(self, config: Config, store: Store, address: str, *, is_agent: bool) -> None:
        self.engine = Engine(config.docker_socket)
        self._config = config
        self._name = config.node_name
        self._store = store
        self._address = address
        self._is_agent = is_agent

    def wait_for_engine(self) -> bool:
        """Wait for dockerd as long as k3s would."""
        until = time.monotonic() + START_SECONDS
        while not self.engine.answers():
            if time.monotonic() > until:
                return False
            time.sleep(RETRY_SECONDS)
        return True

    def register(self) -> None:
        """Make the Node, or bring the one of an earlier start up to date."""
        version = self.engine.call("GET", "/version")["Version"]
        new = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": self._name, "labels": {}}, "spec": {}}
        with contextlib.suppress(ApiError):  # it is known from an earlier start
            self._store.create("nodes", new)

        def describe(node: Object) -> Object:
            node["metadata"]["labels"] |= self._labels()
            node["status"] = {**node.get("status", {}), **self._status(version)}
            return node

        self._store.modify("nodes", "", self._name, describe)
        self.set_ready("")

    def set_ready(self, problem: str) -> None:
        """Report whether pods can run; `problem` says why they cannot."""

        def report(node: Object) -> Object:
            status = node.get("status", {})
            return {**node, "status": {**status, "conditions": [ready_condition(status, problem)]}}

        self._store.modify("nodes", "", self._name, report)
        log.say(f"node {self._name} is {f'not ready: {problem}' if problem else 'ready'}")

    def follow(self, pods: Pods) -> None:
        """Pass dockerd's events to the pods; start again whenever dockerd comes back. Never ends."""
        while True:
            try:
                since = int(time.time()) - 1  # events between the look at all pods and the stream are not lost
                self.engine.call("GET", "/version")
                self.set_ready("")
                pods.resume()
                for event in self.engine.events("GET", "/events", filters=_EVENTS, since=since):
                    pods.on_event(event)
                problem = "its event stream ended"
            except (EngineGone, EngineRefused) as error:
                problem = str(error)
            if not self.engine.answers():
                self.set_ready(f"dockerd does not answer: {problem}")
            time.sleep(RETRY_SECONDS)

    def _labels(self) -> dict[str, str]:
        """Some of the labels that k3s gives a node, and the one that says what this is."""
        return {
            "kubernetes.io/arch": PLATFORM.partition("/")[2],
            "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": self._name,
            **({} if self._is_agent else {"node-role.kubernetes.io/control-plane": "true"}),
            "dind-k3s.io/stub": "true",
        }

    def _status(self, docker_version: str) -> Object:
        """What the node is: addresses, size, versions."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        size = {"cpu": str(os.cpu_count() or 1), "memory": f"{memory // 1024}Ki", "pods": "110"}
        return {
            "addresses": [
                {"type": "InternalIP", "address": self._address},
                {"type": "Hostname", "address": self._name},
            ],
            "capacity": size,
            "allocatable": allocatable(size, self._config.kubelet.get("systemReserved", {})),
            "nodeInfo": {
                "architecture": PLATFORM.partition("/")[2],
                "operatingSystem": "linux",
                "kubeletVersion": VERSION,
                "containerRuntimeVersion": f"docker://{docker_version}",
            },
        }


def own_address() -> str:
    """The address that the default route would use; no packet is sent. Loopback when there is no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1, reserved for documentation
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def own_addresses() -> list[str]:
    """All addresses under which clients may know this machine: its route's and its hostname's."""
    addresses = {own_address()}
    with contextlib.suppress(OSError):  # a hostname that resolves to nothing adds no address
        addresses |= {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(socket.gethostname(), None)}
    return sorted(addresses)
