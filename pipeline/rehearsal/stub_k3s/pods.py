"""The kubelet's work: each pod has a worker that makes its containers match the pod's spec, and its status match them.

A worker syncs when the pod changes, when dockerd has an event of one of its containers or images, and after a back-off;
nothing is polled. All state is in the store and in dockerd, where a new process finds the containers by their labels.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import containers, log, podstatus
from .containers import Container
from .engine import Engine, EngineGone, EngineRefused
from .errors import ApiError, Failure, Object
from .store import Store

BACK_OFF_SECONDS = 10.0  # after any failure; the first restart of a container is immediate

Key = tuple[str, str]  # namespace, name


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The settings that all pods of a node share."""

    store: Store
    engine: Engine
    node_name: str
    kubelet_dir: Path | None  # None: an agent's, whose files the server cannot reach
    resolver: containers.Resolver


class Pods:
    """All pods of the node."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._workers: dict[str, Worker] = {}  # by uid; the ended ones of deleted pods stay
        self._lock = threading.Lock()

    def follow(self) -> None:
        """Wake the worker of every pod of this node that changes; never ends."""
        store = self._machine.store
        version = store.version
        while True:
            try:
                changes = store.changes(version, timeout=3600)
            except ApiError:
                version = store.version
                with contextlib.suppress(EngineGone):  # once it is back, `resume` is called again
                    self.resume()
                continue
            for change in changes:
                version = change.version
                if change.key[0] == "pods" and self._is_here(change.object):
                    self.wake(change.object["metadata"]["uid"], change.key[1:])

    def _is_here(self, pod: Object) -> bool:
        return bool(pod["spec"].get("nodeName") == self._machine.node_name)

    def resume(self) -> None:
        """Sync every pod and every container of one: at the start, and when dockerd is back."""
        for pod in filter(self._is_here, self._machine.store.find("pods")[0]):
            metadata = pod["metadata"]
            self.wake(metadata["uid"], (metadata["namespace"], metadata["name"]), at_once=True)
        labels = {"label": [f"{key}={value}" for key, value in containers.TYPE.items()]}
        for entry in self._machine.engine.call("GET", "/containers/json", all=True, filters=labels):
            self.on_event({"Actor": {"Attributes": entry["Labels"]}})

    def on_event(self, event: Object) -> None:
        """Wake the pod of an event of dockerd; for an image's event all pods, since they may wait for it."""
        attributes = event["Actor"]["Attributes"]
        if uid := attributes.get(containers.POD_UID):
            self.wake(uid, (attributes[containers.POD_NAMESPACE], attributes[containers.POD_NAME]))
        elif event.get("Type") == "image":
            with self._lock:
                workers = list(self._workers.values())
            for worker in workers:
                worker.wake(at_once=True)

    def wake(self, uid: str, key: Key, *, at_once: bool = False) -> None:
        """Have a pod synced by its own worker."""
        with self._lock:
            worker = self._workers.get(uid)
            if worker is None:
                worker = self._workers[uid] = Worker(self._machine, uid, key)
                worker.start()
        worker.wake(at_once=at_once)


class Worker(threading.Thread):
    """The thread of one pod, until the pod is deleted."""

    def __init__(self, machine: Machine, uid: str, key: Key) -> None:
        super().__init__(name=f"pod {key[0]}/{key[1]}", daemon=True)
        self._uid = uid
        self._machine = machine
        self._store = machine.store
        self._engine = machine.engine
        self._key = key
        self._wake = threading.Event()
        self._at_once = False
        self._waiting: dict[str, Object] = {}  # by container
        self._retry: dict[str, float] = {}  # monotonic time of the next try, by container; "": of all of them
        self._restarted: dict[str, float] = {}  # monotonic time of a container's last restart

    def wake(self, *, at_once: bool) -> None:
        """Sync; `at_once` ends all back-offs, after failures whose reason was dockerd or a missing image."""
        self._at_once = self._at_once or at_once
        self._wake.set()

    def run(self) -> None:
        """Sync until the pod is deleted."""
        deleted = False
        while not deleted:
            until = min(self._retry.values(), default=None)
            self._wake.wait(None if until is None else max(0.0, until - time.monotonic()))
            self._wake.clear()
            if self._at_once:
                self._at_once, self._retry, self._restarted = False, {}, {}
            try:
                deleted = self._sync()
                self._retry.pop("", None)
            except EngineGone:
                self._retry = {}  # `resume` wakes all once it is back
            except (ApiError, EngineRefused, OSError) as error:
                log.say(f"{self.name}: {error}; retrying in {BACK_OFF_SECONDS:.0f} s", level="warning")
                self._retry = {"": time.monotonic() + BACK_OFF_SECONDS}

    def _sync(self) -> bool:
        """Start and stop containers and store the status; return whether the pod is deleted."""
        pod = self._pod()
        if pod is None:
            self._end(grace=0)
            return True
        if pod["metadata"].get("deletionTimestamp"):
            self._end(grace=pod["metadata"]["deletionGracePeriodSeconds"])
            with contextlib.suppress(ApiError):
                self._store.delete("pods", *self._key, uid=self._uid)
            return True
        if pod["status"]["phase"] not in ("Succeeded", "Failed"):
            self._start_all(pod, self._observe())
            status = podstatus.status(pod, self._observe(), self._waiting)
            with contextlib.suppress(ApiError):
                self._store.modify(
                    "pods",
                    *self._key,
                    lambda old: {**old, "status": status} if old["metadata"]["uid"] == self._uid else old,
                )
        return False

    def _pod(self) -> Object | None:
        with contextlib.suppress(ApiError):
            pod = self._store.get("pods", *self._key)
            if pod["metadata"]["uid"] == self._uid:
                return pod
        return None

    def _observe(self) -> dict[str, Container]:
        """Return the pod's containers by name."""
        observed: dict[str, Container] = {}
        labels = {"label": [f"{containers.POD_UID}={self._uid}"]}
        for entry in self._engine.call("GET", "/containers/json", all=True, filters=labels):
            try:
                inspected = self._engine.call("GET", f"/containers/{entry['Id']}/json")
            except EngineRefused as refused:
                if refused.status != 404:  # removed between the two requests
                    raise
            else:
                observed[entry["Labels"][containers.CONTAINER_NAME]] = containers.read(inspected)
        return observed

    def _start_all(self, pod: Object, observed: dict[str, Container]) -> None:
        """Start the containers that should run. The first one owns the network."""
        owner: str | None = None
        for number, spec in enumerate(pod["spec"]["containers"]):
            name = spec["name"]
            last = observed.get(name)
            running = last.id if last and last.running else None
            if running or self._retry.get(name, 0.0) <= time.monotonic():
                self._retry.pop(name, None)
                self._waiting.pop(name, None)
                running = running or self._start(pod, spec, last, owner)
            if number == 0:
                owner = running

    def _start(self, pod: Object, spec: Object, last: Container | None, owner: str | None) -> str | None:
        """Start a container if its restart policy, its back-off and its image allow it; return its id."""
        attempt = last.attempt if last else 0
        if last and last.ended:
            policy = pod["spec"]["restartPolicy"]
            if policy == "Never" or (policy == "OnFailure" and last.exit_code == 0):
                return None
            if spec["name"] in self._restarted:
                retry = self._restarted.pop(spec["name"]) + BACK_OFF_SECONDS
                message = f"back-off {BACK_OFF_SECONDS:.0f}s restarting failed container={spec['name']}"
                self._wait(pod, spec, {"reason": "CrashLoopBackOff", "message": message}, retry)
                return None
            self._restarted[spec["name"]] = time.monotonic()
            attempt += 1
        if problem := self._engine.ensure_image(spec):
            self._wait(pod, spec, problem)
            return None
        if last:
            self._engine.call("DELETE", f"/containers/{last.id}", force=True, v=True)
        return self._create(pod, spec, attempt, owner)

    def _create(self, pod: Object, spec: Object, attempt: int, owner: str | None) -> str | None:
        folder, resolver = self._machine.kubelet_dir, self._machine.resolver
        try:
            if folder:  # a pod's token, which is empty: the stub checks none
                containers.mount_memory(containers.volume_folder(folder, pod, "projected", "kube-api-access-stub"))
            body = containers.creation(pod, spec, attempt, owner=owner, kubelet_dir=folder, resolver=resolver)
            name = f"k8s_{spec['name']}_{self._key[1]}_{self._key[0]}_{self._uid}_{attempt}"
            made = str(self._engine.call("POST", "/containers/create", body, name=name)["Id"])
        except (Failure, EngineRefused) as problem:
            self._wait(pod, spec, {"reason": "CreateContainerError", "message": str(problem)})
            return None
        try:
            self._engine.call("POST", f"/containers/{made}/start")
        except EngineRefused:  # the reason is in the container's state, which the next sync reads
            self._wake.set()
            return None
        return made

    def _wait(self, pod: Object, spec: Object, waiting: Object, retry: float | None = None) -> None:
        self._waiting[spec["name"]] = waiting
        self._retry[spec["name"]] = retry or time.monotonic() + BACK_OFF_SECONDS
        self._store.record_event(pod, "Warning", waiting["reason"], waiting["message"])

    def _end(self, *, grace: int) -> None:
        """Stop all containers at once; remove them, their anonymous volumes and the pod's folder."""

        def end(container: Container) -> None:
            with contextlib.suppress(EngineRefused):  # it is removed already
                if container.running and grace:
                    self._engine.call("POST", f"/containers/{container.id}/stop", t=grace, timeout=grace + 60)
                self._engine.call("DELETE", f"/containers/{container.id}", force=True, v=True)

        ending = self._observe().values()
        with ThreadPoolExecutor(max_workers=len(ending) or 1) as pool:
            list(pool.map(end, ending))
        if self._machine.kubelet_dir:
            containers.remove_folder(containers.pod_folder(self._machine.kubelet_dir, self._uid))
