"""A kubelet's work on one pod: make its containers match the pod's spec, and its status match them.

All state is in the store and in dockerd, where a new process finds the containers by their labels.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from . import containers
from .containers import Container
from .engine import EngineGone, EngineRefused
from .errors import ApiError, Failure, Object, Waiting
from .process import say

if TYPE_CHECKING:
    from .node import Node

RETRY_SECONDS = 10.0  # after any failure; the first restart of a container is immediate


class Worker(threading.Thread):
    """The thread of one pod, until the pod is deleted. It syncs when it is woken, and every few seconds."""

    def __init__(self, node: Node, uid: str, key: tuple[str, str]) -> None:
        """`key`: namespace and name."""
        super().__init__(name=f"pod {key[0]}/{key[1]}", daemon=True)
        self.wake = threading.Event()
        self.restarted: dict[str, float] = {}  # monotonic time of a container's last restart
        self._node = node
        self._store = node.store
        self._engine = node.engine
        self._uid = uid
        self._key = key

    def run(self) -> None:
        """Sync until the pod is deleted."""
        deleted = False
        while not deleted:
            self.wake.wait(RETRY_SECONDS)
            self.wake.clear()
            try:
                deleted = self._sync()
            except EngineGone:
                pass  # its node wakes all pods once it is back
            except (ApiError, EngineRefused, OSError) as error:
                say(f"{self.name}: {error}; retrying in {RETRY_SECONDS:.0f} s", level="warning")

    def _sync(self) -> bool:
        """Start and stop containers and store the status; return whether the pod is deleted."""
        pod = self._pod()
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            self._end(grace=pod["metadata"]["deletionGracePeriodSeconds"] if pod else 0)
            if pod:
                self._store.delete("pods", *self._key, uid=self._uid)
            return True
        if pod["status"]["phase"] not in ("Succeeded", "Failed"):
            waiting = self._start_all(pod)
            new = status(pod, self._observe(), waiting)
            self._store.modify(
                "pods",
                *self._key,
                lambda old: {**old, "status": new} if old["metadata"]["uid"] == self._uid else old,
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

    def _start_all(self, pod: Object) -> dict[str, Object]:
        """Start the containers that should run; return why others wait. The first one owns the network."""
        observed = self._observe()
        waiting: dict[str, Object] = {}
        owner: str | None = None
        for number, spec in enumerate(pod["spec"]["containers"]):
            last = observed.get(spec["name"])
            running = last.id if last and last.running else None
            try:
                running = running or self._start(pod, spec, last, owner)
            except Waiting as why:
                waiting[spec["name"]] = {"reason": why.reason, "message": str(why)}
                self._store.record_event(pod, "Warning", why.reason, str(why))
            if number == 0:
                owner = running
        return waiting

    def _start(self, pod: Object, spec: Object, last: Container | None, owner: str | None) -> str | None:
        """Start a container if its restart policy allows it; return its id. Raises Waiting."""
        name, attempt = spec["name"], last.attempt if last else 0
        if last and last.ended:
            policy = pod["spec"]["restartPolicy"]
            if policy == "Never" or (policy == "OnFailure" and last.exit_code == 0):
                return None
            if time.monotonic() < self.restarted.get(name, 0.0) + RETRY_SECONDS:
                raise Waiting("CrashLoopBackOff", f"back-off {RETRY_SECONDS:.0f}s restarting failed container={name}")
            self.restarted[name] = time.monotonic()
            attempt += 1
        self._engine.ensure_image(spec)
        if last:
            self._engine.call("DELETE", f"/containers/{last.id}", force=True, v=True)
        folder = self._node.kubelet_dir
        try:
            if folder:  # a pod's token, which is empty: the stub checks none
                containers.mount_memory(containers.volume_folder(folder, pod, "projected", "kube-api-access-stub"))
            settings = self._node.resolver if owner is None else {"NetworkMode": f"container:{owner}"}
            body = containers.creation(pod, spec, attempt, network=settings, kubelet_dir=folder)
            full_name = f"k8s_{name}_{self._key[1]}_{self._key[0]}_{self._uid}_{attempt}"
            made = str(self._engine.call("POST", "/containers/create", body, name=full_name)["Id"])
        except (Failure, EngineRefused) as problem:
            raise Waiting("CreateContainerError", str(problem)) from None
        with contextlib.suppress(EngineRefused):  # the reason is in the container's state
            self._engine.call("POST", f"/containers/{made}/start")
            return made
        return None

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
        if self._node.kubelet_dir:
            containers.remove_folder(self._node.kubelet_dir / "pods" / self._uid)


def status(pod: Object, observed: Mapping[str, Container], waiting: Mapping[str, Object]) -> Object:
    """Return a pod's whole status; `waiting`: why containers do not run, by name."""
    statuses = []
    for spec in pod["spec"]["containers"]:
        container = observed.get(spec["name"])
        statuses.append(
            {
                "name": spec["name"],
                "image": spec["image"],
                "restartCount": container.attempt if container else 0,
                "ready": bool(container and container.running),
                "state": _state(container, waiting.get(spec["name"])),
            }
        )
    unready = " ".join(status["name"] for status in statuses if not status["ready"])
    return {
        "phase": _phase(pod, observed),
        "conditions": [ready_condition(f"containers with unready status: [{unready}]" if unready else "")],
        "containerStatuses": statuses,
    }


def _phase(pod: Object, observed: Mapping[str, Container]) -> str:
    """Return the pod's phase (kubernetes: pkg/kubelet/kubelet_pods.go, getPhase)."""
    policy = pod["spec"]["restartPolicy"]
    started = [container for container in observed.values() if container.running or container.ended]
    if len(started) < len(pod["spec"]["containers"]):
        return "Pending"
    if policy == "Always" or any(container.running for container in started):
        return "Running"
    if all(container.exit_code == 0 for container in started):
        return "Succeeded"
    return "Running" if policy == "OnFailure" else "Failed"


def _state(container: Container | None, waiting: Object | None) -> Object:
    if container and container.running:
        return {"running": {}}
    if container and container.ended and waiting is None:
        reason = "StartError" if container.state == "created" else "Error" if container.exit_code else "Completed"
        return {"terminated": {"exitCode": container.exit_code, "reason": reason, "message": container.error}}
    return {"waiting": waiting or {"reason": "ContainerCreating"}}


def ready_condition(problem: str) -> Object:
    """Return the condition Ready of a pod or a node; `problem`: why it is not Ready, empty if it is."""
    return {"type": "Ready", "status": "False" if problem else "True", "message": problem}
