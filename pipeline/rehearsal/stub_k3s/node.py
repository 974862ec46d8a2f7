"""One node: its object in the store, and the workers of its pods.

The server does a kubelet's work for all nodes: for its own, and through a tunnel for the agents'. Nothing but failures
is polled: pods are synced when they change, and when dockerd has an event of one of their containers or of an image.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from . import containers
from .about import PLATFORM, VERSION
from .config import Config
from .engine import RETRY_SECONDS, Engine, EngineGone, EngineRefused
from .errors import ApiError, Object
from .kubelet import allocatable
from .pods import Worker, ready_condition
from .process import in_background, say, shut_down
from .store import Store

KUBELET_SECONDS = 1.5  # until a kubelet refuses its configuration: it starts once the API server is ready
START_SECONDS = 10.0  # after about this time k3s gives up on a dockerd that does not answer

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
_EVENTS = {"type": ["container", "image"], "event": ["create", "start", "die", "destroy", "load", "pull", "tag"]}


class Node:
    """One node: the server's own, or without a configuration an agent's."""

    def __init__(self, store: Store, name: str, engine: Engine, config: Config | None = None) -> None:
        self.store = store
        self.name = name
        self.engine = engine
        self.kubelet_dir = config.kubelet_dir if config else None  # None: the server cannot reach an agent's files
        self.resolver = containers.resolver(config.resolv_conf) if config and config.resolv_conf else {}
        self._config = config
        self._problem: str | None = None  # the last one that was logged
        self._workers: dict[str, Worker] = {}  # by uid; the ended ones of deleted pods stay
        self._lock = threading.Lock()

    def register(self, address: str) -> None:
        """Create the Node object, or update the one of an earlier start."""
        labels = {
            "kubernetes.io/arch": PLATFORM.partition("/")[2],
            "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": self.name,
            **({CONTROL_PLANE: "true"} if self._config else {}),
            "dind-k3s.io/stub": "true",
        }
        addresses = [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": self.name}]
        new = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": self.name, "labels": {}}}
        with contextlib.suppress(ApiError):  # it exists from an earlier start
            self.store.create("nodes", {**new, "spec": {}, "status": {}})

        def describe(node: Object) -> Object:
            node["metadata"]["labels"] |= labels
            node["status"]["addresses"] = addresses
            return node

        self.store.modify("nodes", "", self.name, describe)
        say(f"node {self.name} is registered with {address}")

    def start(self) -> None:
        """Run pods, and report whether dockerd answers, in threads that never end."""
        in_background("pods", self._follow_pods)
        in_background("engine", self._follow_engine)

    def _follow_pods(self) -> None:
        version = self.store.version
        while True:
            for change in self.store.changes(version, timeout=3600):
                version = change.version
                if change.key[0] == "pods" and change.object["spec"].get("nodeName") == self.name:
                    self._wake(change.object["metadata"]["uid"], *change.key[1:])

    def _follow_engine(self) -> None:
        while True:
            problem = "its event stream ended"
            try:
                since = int(time.time()) - 1  # so that no event is lost between `_resume` and the stream
                self._report("")
                self._resume()
                for event in self.engine.events("GET", "/events", filters=_EVENTS, since=since):
                    attributes = event["Actor"]["Attributes"]
                    if event.get("Type") == "image":
                        self._wake_all()  # they may wait for it
                    elif containers.POD_UID in attributes:
                        self._wake(*(attributes[label] for label in containers.POD))
            except (EngineGone, EngineRefused, ApiError) as error:
                problem = str(error)
            if not self.engine.answers():
                with contextlib.suppress(ApiError):  # the node was deleted
                    self._report(f"dockerd does not answer: {problem}")
            time.sleep(RETRY_SECONDS)

    def _resume(self) -> None:
        """Sync every pod and every container of one: at the start, and when dockerd is back."""
        for pod in self.store.find("pods")[0]:
            metadata = pod["metadata"]
            if pod["spec"].get("nodeName") == self.name:
                self._wake(metadata["uid"], metadata["namespace"], metadata["name"])
        labels = {"label": [f"{key}={value}" for key, value in containers.TYPE.items()]}
        for entry in self.engine.call("GET", "/containers/json", all=True, filters=labels):
            self._wake(*(entry["Labels"][label] for label in containers.POD))
        self._wake_all()

    def _wake(self, uid: str, namespace: str, name: str) -> None:
        """Have a pod synced by its own worker."""
        with self._lock:
            worker = self._workers.get(uid)
            if worker is None:
                worker = self._workers[uid] = Worker(self, uid, (namespace, name))
                worker.start()
        worker.wake.set()

    def _wake_all(self) -> None:
        """Sync all pods now, whatever failed before: the reason was dockerd or a missing image."""
        with self._lock:
            for worker in self._workers.values():
                worker.restarted.clear()
                worker.wake.set()

    def _report(self, problem: str) -> None:
        """Set the condition Ready, and while dockerd answers size and versions. Raises ApiError for a deleted node."""
        facts = {} if problem else self._facts()
        status = {**facts, "conditions": [ready_condition(problem)]}
        self.store.modify("nodes", "", self.name, lambda node: {**node, "status": {**node["status"], **status}})
        if problem != self._problem:
            self._problem = problem
            say(f"node {self.name} is {f'not ready: {problem}' if problem else 'ready'}")

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


def start_kubelet(config: Config) -> Engine:
    """Return this machine's dockerd; without it, or if the kubelet refuses its configuration, end the process."""
    if config.kubelet_refusal:
        time.sleep(KUBELET_SECONDS)
        shut_down(f"kubelet exited: {config.kubelet_refusal}")
    engine = Engine.local(config.docker_socket)
    if not engine.answers(within=START_SECONDS):
        shut_down(f"failed to start container runtime: dockerd does not answer on {config.docker_socket}")
    return engine
