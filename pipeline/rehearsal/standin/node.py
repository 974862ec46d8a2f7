"""The one node: what it is, and whether dockerd answers."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import threading
import time
from pathlib import Path

from . import events, log
from .about import VERSION
from .config import Config
from .engine import Engine, EngineGone, EngineRefused
from .kubelet import allocatable
from .pods import Kubelet
from .status import ApiError, Object
from .store import Store, timestamp

START_SECONDS = 10.0  # k3s gives up on a dockerd that does not answer after about this time
RETRY_SECONDS = 0.25
PING_SECONDS = 4.0
HEARTBEAT_SECONDS = 300.0
AGENT_HEARTBEAT_SECONDS = 10.0  # the server takes one that is silent for 40 s as lost

_EVENTS = {
    "type": ["container", "image"],
    "event": ["create", "start", "die", "destroy", "pause", "unpause", "oom", "load", "pull", "tag", "import"],
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Node:
    """Keeps the Node object true."""

    def __init__(self, config: Config, store: Store, engine: Engine, node_ip: str, *, is_agent: bool = False) -> None:
        self._config = config
        self._store = store
        self.engine = engine
        self._ip = node_ip
        self._is_agent = is_agent
        self._heartbeat = AGENT_HEARTBEAT_SECONDS if is_agent else HEARTBEAT_SECONDS
        self._lock = threading.Lock()
        self._ready: bool | None = None
        self._told = 0.0

    def wait_for_engine(self) -> bool:
        """Wait for dockerd as long as k3s would."""
        until = time.monotonic() + START_SECONDS
        while not self.engine.ping():
            if time.monotonic() > until:
                return False
            threading.Event().wait(RETRY_SECONDS)
        return True

    def register(self) -> None:
        """Make the Node, or bring the one of an earlier start up to date."""
        version = self.engine.version()["Version"]
        name = self._config.node_name
        try:
            self._store.create("nodes", {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": {}})
        except ApiError:
            log.say(f"node {name} is known from an earlier start")

        def describe(node: Object) -> Object:
            labels = {**(node["metadata"].get("labels") or {}), **node_labels(self._config, is_agent=self._is_agent)}
            node["metadata"]["labels"] = labels
            if not self._is_agent:
                node["spec"]["podCIDR"] = str(next(self._config.cluster_cidr.subnets(new_prefix=24)))
            status = node_status(name, self._ip, str(version), self._config.kubelet)
            node["status"] = {**node.get("status", {}), **status}
            return node

        self._store.modify("nodes", "", name, describe)
        self.set_ready(True, "dockerd answers")

    def set_ready(self, ready: bool, message: str) -> None:
        """Tell whether pods can run; without a change, only as often as the kubelet does."""
        with self._lock:
            if ready is self._ready and time.monotonic() - self._told < self._heartbeat:
                return
            changed, self._ready, self._told = ready is not self._ready, ready, time.monotonic()
            now = timestamp()

            def tell(node: Object) -> Object:
                known = {entry["type"]: entry for entry in node.get("status", {}).get("conditions") or []}
                wanted = {"MemoryPressure": False, "DiskPressure": False, "PIDPressure": False, "Ready": ready}
                node.setdefault("status", {})["conditions"] = [
                    _condition(kind, value, known.get(kind), now, message) for kind, value in wanted.items()
                ]
                return node

            node = self._store.modify("nodes", "", self._config.node_name, tell)
        if changed:
            (log.say if ready else log.warn)(
                f"node {self._config.node_name} is {'' if ready else 'not '}ready: {message}"
            )
            events.record(self._store, node, "Normal", "NodeReady" if ready else "NodeNotReady", message)

    def follow(self, kubelet: Kubelet) -> None:
        """Pass dockerd's events to the kubelet; start anew whenever dockerd comes back. Runs for ever."""
        while True:
            try:
                since = int(time.time()) - 1  # events between the look at all pods and the stream are not lost
                version = self.engine.version()["Version"]
                self._tell_version(str(version))
                self.set_ready(True, "dockerd answers")
                kubelet.resume()
                for event in self.engine.events("GET", "/events", filters=_EVENTS, since=since):
                    kubelet.on_event(event)
                problem = "its event stream ended"
            except (EngineGone, EngineRefused) as error:
                problem = str(error)
            if not self.engine.ping():
                self.set_ready(False, f"dockerd does not answer: {problem}")
            threading.Event().wait(RETRY_SECONDS)

    def watch_pulse(self) -> None:
        """See a dockerd that hangs with its connections open. Runs for ever."""
        while True:
            threading.Event().wait(PING_SECONDS)
            if self.engine.ping():
                self.set_ready(True, "dockerd answers")
            else:
                self.set_ready(False, "dockerd does not answer")

    def _tell_version(self, version: str) -> None:
        def tell(node: Object) -> Object:
            node["status"]["nodeInfo"]["containerRuntimeVersion"] = f"docker://{version}"
            return node

        self._store.modify("nodes", "", self._config.node_name, tell)


def _condition(kind: str, value: bool, old: Object | None, now: str, message: str) -> Object:
    status = "True" if value else "False"
    names = {"Ready": ("KubeletReady", "KubeletNotReady")}.get(kind, ("", f"KubeletHasNo{kind}"))
    return {
        "type": kind,
        "status": status,
        "reason": names[0] if value else names[1],
        "message": message if kind == "Ready" else "the stand-in does not measure this",
        "lastHeartbeatTime": now,
        "lastTransitionTime": old["lastTransitionTime"] if old and old["status"] == status else now,
    }


def node_labels(config: Config, *, is_agent: bool) -> dict[str, str]:
    """The labels that k3s gives a node, the user's, and the one that says what this is."""
    architecture = _architecture()
    return {
        "kubernetes.io/arch": architecture,
        "beta.kubernetes.io/arch": architecture,
        "kubernetes.io/os": "linux",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/hostname": config.node_name,
        **({} if is_agent else {"node-role.kubernetes.io/control-plane": "true"}),
        "node.kubernetes.io/instance-type": "k3s",
        **config.node_labels,
        "dind-k3s.io/stand-in": "true",
    }


def node_status(name: str, address: str, docker_version: str, settings: Object) -> Object:
    """What the node is: addresses, size, system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = {"cpu": str(os.cpu_count() or 1), "memory": f"{memory // 1024}Ki", "pods": "110"}
    return {
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
        "capacity": size,
        "allocatable": allocatable(size, settings.get("systemReserved", {})),
        "nodeInfo": {
            "architecture": _architecture(),
            "operatingSystem": "linux",
            "osImage": _os_name(),
            "kernelVersion": platform.release(),
            "kubeletVersion": VERSION,
            "kubeProxyVersion": "",
            "containerRuntimeVersion": f"docker://{docker_version}",
            "machineID": _line("/etc/machine-id"),
            "systemUUID": "",
            "bootID": _line("/proc/sys/kernel/random/boot_id"),
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
    found = {own_address()}
    with contextlib.suppress(OSError):  # a hostname that resolves to nothing adds no address
        found |= {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(socket.gethostname(), None)}
    return sorted(found)


def _architecture() -> str:
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def _os_name() -> str:
    lines = _text("/etc/os-release").splitlines()
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")), "Linux")


def _line(path: str) -> str:
    return _text(path).strip()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
