"""The kubelet's part: each pod has a worker that makes its containers be as the pod says, and the status as they are.

A worker looks whenever the pod changed, dockerd told of one of its containers or images, or a pause is over; nothing
is polled. What must survive is in the store and in dockerd, so a new process takes everything up by the labels.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import containers, events, images, log, podfolder, podstatus
from .containers import Container
from .engine import Engine, EngineGone, EngineRefused
from .failure import Failure
from .status import ApiError, Object
from .store import Store

PAUSE_SECONDS = 10.0  # between two tries of anything that fails; the first restart of a container comes at once

Key = tuple[str, str]  # namespace, name


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What all pods of a node share."""

    store: Store
    engine: Engine
    node_name: str
    kubelet_dir: Path
    resolver: dict[str, list[str]]


class Pods:
    """All pods of the node."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._workers: dict[str, Worker] = {}  # by uid; that of a pod which is gone stays, and does nothing
        self._lock = threading.Lock()

    def follow(self) -> None:
        """Wake the worker of every pod that changes; never ends."""
        store = self._machine.store
        version = store.version
        while True:
            try:
                changes = store.changes(version, timeout=3600)
            except ApiError:
                version = store.version
                with contextlib.suppress(EngineGone):  # its return resumes, too
                    self.resume()
                continue
            for change in changes:
                version = change.version
                if change.key[0] == "pods":
                    self.wake(change.object["metadata"]["uid"], change.key[1:])

    def resume(self) -> None:
        """Look at every pod and at every container that belongs to one: at the start, and when dockerd is back."""
        for pod in self._machine.store.find("pods")[0]:
            metadata = pod["metadata"]
            self.wake(metadata["uid"], (metadata["namespace"], metadata["name"]), forgive=True)
        labels = {"label": [f"{key}={value}" for key, value in containers.TYPE.items()]}
        for entry in self._machine.engine.call("GET", "/containers/json", all=True, filters=labels):
            self.on_event({"Actor": {"Attributes": entry["Labels"]}})

    def on_event(self, event: Object) -> None:
        """Wake whom an event of dockerd concerns: one pod, or all, because they may wait for an image."""
        attributes = event["Actor"]["Attributes"]
        if uid := attributes.get(containers.POD_UID):
            self.wake(uid, (attributes[containers.POD_NAMESPACE], attributes[containers.POD_NAME]))
        elif event.get("Type") == "image":
            with self._lock:
                workers = list(self._workers.values())
            for worker in workers:
                worker.wake(forgive=True)

    def wake(self, uid: str, key: Key, *, forgive: bool = False) -> None:
        """Have one pod looked at, soon and by its own worker."""
        with self._lock:
            worker = self._workers.get(uid)
            if worker is None:
                worker = self._workers[uid] = Worker(self._machine, uid, key)
                worker.start()
        worker.wake(forgive=forgive)


class Worker(threading.Thread):
    """One pod's life."""

    def __init__(self, machine: Machine, uid: str, key: Key) -> None:
        super().__init__(name=f"pod {key[0]}/{key[1]}", daemon=True)
        self._uid = uid
        self._machine = machine
        self._store = machine.store
        self._engine = machine.engine
        self._key = key
        self._wake = threading.Event()
        self._forgive = False
        self._waiting: dict[str, Object] = {}  # by container
        self._again: dict[str, float] = {}  # when to try again, by container; "" for all of them
        self._restarted: dict[str, float] = {}  # when a container was restarted last

    def wake(self, *, forgive: bool) -> None:
        """Look again; `forgive` ends all pauses, for what failed was dockerd's doing or a missing image's."""
        self._forgive = self._forgive or forgive
        self._wake.set()

    def run(self) -> None:
        """Look until the pod is gone."""
        gone = False
        while not gone:
            until = min(self._again.values(), default=None)
            self._wake.wait(None if until is None else max(0.0, until - time.monotonic()))
            self._wake.clear()
            if self._forgive:
                self._forgive, self._again, self._restarted = False, {}, {}
            try:
                gone = self._look()
                self._again.pop("", None)
            except EngineGone:
                self._again = {}  # dockerd's return wakes all
            except (ApiError, EngineRefused, OSError) as error:
                log.say(f"{self.name}: {error}; trying again in {PAUSE_SECONDS:.0f} s", level="warning")
                self._again = {"": time.monotonic() + PAUSE_SECONDS}

    def _look(self) -> bool:
        """Do what is to be done now; return whether the pod is gone."""
        pod = self._pod()
        if pod is None:
            self._end(grace=0)
            return True
        if pod["spec"].get("nodeName") != self._machine.node_name:
            return False
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
        """The pod's containers by name."""
        observed: dict[str, Container] = {}
        labels = {"label": [f"{containers.POD_UID}={self._uid}"]}
        for entry in self._engine.call("GET", "/containers/json", all=True, filters=labels):
            try:
                inspected = self._engine.call("GET", f"/containers/{entry['Id']}/json")
            except EngineRefused as refused:
                if refused.status != 404:  # removed between the two questions
                    raise
            else:
                observed[entry["Labels"][containers.CONTAINER_NAME]] = containers.read(inspected)
        return observed

    def _start_all(self, pod: Object, observed: dict[str, Container]) -> None:
        """Start what should run. The first container owns the network."""
        owner: str | None = None
        for number, spec in enumerate(pod["spec"]["containers"]):
            name = spec["name"]
            last = observed.get(name)
            running = last.id if last and last.running else None
            if running or self._again.get(name, 0.0) <= time.monotonic():
                self._again.pop(name, None)
                self._waiting.pop(name, None)
                running = running or self._start(pod, spec, last, owner)
            if number == 0:
                owner = running

    def _start(self, pod: Object, spec: Object, last: Container | None, owner: str | None) -> str | None:
        """Start a container that does not run, if its policy, its pause and its image allow it; return its id."""
        attempt = last.attempt if last else 0
        if last and last.ended:
            policy = pod["spec"]["restartPolicy"]
            if policy == "Never" or (policy == "OnFailure" and last.exit_code == 0):
                return None
            if spec["name"] in self._restarted:
                again = self._restarted.pop(spec["name"]) + PAUSE_SECONDS
                message = f"back-off {PAUSE_SECONDS:.0f}s restarting failed container={spec['name']}"
                self._wait(pod, spec, {"reason": "CrashLoopBackOff", "message": message}, again)
                return None
            self._restarted[spec["name"]] = time.monotonic()
            attempt += 1
        if problem := images.ensure(self._engine, spec):
            self._wait(pod, spec, problem)
            return None
        if last:
            self._engine.call("DELETE", f"/containers/{last.id}", force=True, v=True)
        return self._create(pod, spec, attempt, owner)

    def _create(self, pod: Object, spec: Object, attempt: int, owner: str | None) -> str | None:
        folder, resolver = self._machine.kubelet_dir, self._machine.resolver
        try:
            # A pod's token; empty, since nothing of the stub asks for one.
            podfolder.mount_memory(podfolder.volume(folder, pod, "projected", "kube-api-access-stub"))
            body = containers.creation(pod, spec, attempt, owner=owner, kubelet_dir=folder, resolver=resolver)
            name = f"k8s_{spec['name']}_{self._key[1]}_{self._key[0]}_{self._uid}_{attempt}"
            made = str(self._engine.call("POST", "/containers/create", body, name=name)["Id"])
        except (Failure, EngineRefused) as problem:
            self._wait(pod, spec, {"reason": "CreateContainerError", "message": str(problem)})
            return None
        try:
            self._engine.call("POST", f"/containers/{made}/start")
        except EngineRefused:  # dockerd keeps the reason in the container's state; the next look sees it
            self._wake.set()
            return None
        return made

    def _wait(self, pod: Object, spec: Object, waiting: Object, again: float | None = None) -> None:
        self._waiting[spec["name"]] = waiting
        self._again[spec["name"]] = again or time.monotonic() + PAUSE_SECONDS
        events.record(self._store, pod, "Warning", waiting["reason"], waiting["message"])

    def _end(self, *, grace: int) -> None:
        """Stop all containers at the same time, then remove them, their anonymous volumes and the pod's folder."""

        def end(container: Container) -> None:
            with contextlib.suppress(EngineRefused):  # it is gone already
                if container.running and grace:
                    self._engine.call("POST", f"/containers/{container.id}/stop", t=grace, timeout=grace + 60)
                self._engine.call("DELETE", f"/containers/{container.id}", force=True, v=True)

        every = self._observe().values()
        with ThreadPoolExecutor(max_workers=len(every) or 1) as pool:
            list(pool.map(end, every))
        podfolder.remove(podfolder.of(self._machine.kubelet_dir, self._uid))
