"""The kubelet's part: each pod has a worker that makes its containers be as the pod says, and the status as they are.

A worker looks whenever the pod changed, dockerd told of one of its containers or images, or a pause is over; nothing
is polled. What must survive lies in the store and in dockerd, so a new process takes everything up by the labels.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from . import containers, events, images, log, podfolder, podstatus
from .containers import Container
from .engine import Engine, EngineGone, EngineRefused
from .failure import Failure
from .podstatus import View, Waiting
from .resolver import Resolver
from .status import ApiError, Object
from .store import Store

RETRY_SECONDS = 10.0
# pkg/kubelet/kubelet.go: the first restart comes at once, the next after 10 s, then twice that, up to 5 minutes.
BACKOFF_FIRST, BACKOFF_MOST, BACKOFF_FORGIVEN = 10.0, 300.0, 600.0

Key = tuple[str, str]


class Kubelet:
    """All pods of the node."""

    def __init__(
        self, store: Store, engine: Engine, *, node_name: str, node_ip: str, kubelet_dir: Path, resolver: Resolver
    ) -> None:
        self.store = store
        self.engine = engine
        self.node_name = node_name
        self.node_ip = node_ip
        self.kubelet_dir = kubelet_dir
        self.resolver = resolver
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()

    def follow(self) -> None:
        """Wake the worker of every pod that changes; runs for ever."""
        version = self.store.version
        while True:
            try:
                changes = self.store.changes(version, timeout=3600)
            except ApiError:
                version = self.store.version
                self.resume()
                continue
            for change in changes:
                version = change.version
                if change.key[0] == "pods":
                    self.wake(change.object["metadata"]["uid"], change.key[1:])

    def resume(self) -> None:
        """Look at every pod and at every container that belongs to one: at the start, and when dockerd is back."""
        for pod in self.store.find("pods")[0]:
            metadata = pod["metadata"]
            self.wake(metadata["uid"], (metadata["namespace"], metadata["name"]), forgive=True)
        for entry in self.engine.call("GET", "/containers/json", all=True, filters={"label": _label_filter()}):
            self.on_event({"Actor": {"Attributes": entry["Labels"]}})

    def on_event(self, event: Object) -> None:
        """Wake whom an event of dockerd concerns: one pod, or all that may wait for an image."""
        attributes = event.get("Actor", {}).get("Attributes") or {}
        uid = attributes.get(containers.POD_UID)
        if uid:
            key = (attributes.get(containers.POD_NAMESPACE, ""), attributes.get(containers.POD_NAME, ""))
            self.wake(uid, key)
        elif event.get("Type") == "image" and event.get("Action") in ("load", "pull", "tag", "import", "create"):
            with self._lock:
                waiting = [worker for worker in self._workers.values() if worker.wants_image]
            for worker in waiting:
                worker.wake(forgive=True)

    def wake(self, uid: str, key: Key, *, forgive: bool = False) -> None:
        """Have one pod looked at, soon and by its own worker."""
        with self._lock:
            worker = self._workers.get(uid)
            if worker is None:
                worker = self._workers[uid] = Worker(self, uid, key)
                worker.start()
            worker.wake(forgive=forgive)

    def retire(self, worker: Worker) -> bool:
        """Let a worker go, unless it was woken in the meantime."""
        with self._lock:
            if worker.woken:
                return False
            self._workers.pop(worker.uid, None)
            return True


class Worker(threading.Thread):
    """One pod's life."""

    def __init__(self, kubelet: Kubelet, uid: str, key: Key) -> None:
        super().__init__(name=f"pod {key[0]}/{key[1]}", daemon=True)
        self.uid = uid
        self.wants_image = False
        self._kubelet = kubelet
        self._store = kubelet.store
        self._engine = kubelet.engine
        self._key = key
        self._wake = threading.Event()
        self._forgive = False
        self._pause = Pauses()
        self._pulls = Pauses()
        self._waiting: dict[str, Waiting] = {}

    @property
    def woken(self) -> bool:
        """Whether there is something to look at."""
        return self._wake.is_set()

    def wake(self, *, forgive: bool) -> None:
        """Look again; `forgive` forgets earlier failures, which were dockerd's or a missing image's."""
        self._forgive = self._forgive or forgive
        self._wake.set()

    def run(self) -> None:
        """Look until the pod is gone or has ended."""
        until: float | None = None
        while True:
            self._wake.wait(None if until is None else max(0.0, until - time.time()))
            self._wake.clear()
            if self._forgive:
                self._forgive, self._pause, self._pulls = False, Pauses(), Pauses()
            try:
                finished, until = self._look()
            except EngineGone:
                finished, until = False, None  # dockerd's return wakes all
            except (ApiError, EngineRefused, OSError) as error:
                log.warn(f"{self.name}: {error}; trying again in {RETRY_SECONDS:.0f} s")
                finished, until = False, time.time() + RETRY_SECONDS
            if finished and self._kubelet.retire(self):
                return

    def _look(self) -> tuple[bool, float | None]:
        """Do what is to be done now; say whether that was all for good, and else when to look again at the latest."""
        pod = self._pod()
        if pod is None:
            self._remove(self._observe(), grace=0)
            podfolder.remove(podfolder.of(self._kubelet.kubelet_dir, self.uid))
            return True, None
        if pod["spec"].get("nodeName") != self._kubelet.node_name:
            return True, None
        if pod["metadata"].get("deletionTimestamp"):
            events.record(self._store, pod, "Normal", "Killing", "Stopping the containers")
            self._remove(self._observe(), grace=pod["metadata"].get("deletionGracePeriodSeconds", 30))
            podfolder.remove(podfolder.of(self._kubelet.kubelet_dir, self.uid))
            with contextlib.suppress(ApiError):
                self._store.delete("pods", *self._key, uid=self.uid)
            return True, None
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return True, None
        self._waiting = {}
        self.wants_image = False
        until = self._advance(pod, self._observe())
        view = View(attempts=self._observe(), waiting=self._waiting)
        status = podstatus.status(pod, view, self._kubelet.node_ip)
        with contextlib.suppress(ApiError):
            self._store.modify("pods", *self._key, self._with_status(status))
        return status["phase"] in ("Succeeded", "Failed"), until

    def _with_status(self, status: Object) -> Callable[[Object], Object]:
        return lambda pod: {**pod, "status": status} if pod["metadata"]["uid"] == self.uid else pod

    def _pod(self) -> Object | None:
        with contextlib.suppress(ApiError):
            pod = self._store.get("pods", *self._key)
            if pod["metadata"]["uid"] == self.uid:
                return pod
        return None

    def _observe(self) -> dict[str, list[Container]]:
        found: dict[str, list[Container]] = {}
        label = [*_label_filter(), f"{containers.POD_UID}={self.uid}"]
        for entry in self._engine.call("GET", "/containers/json", all=True, filters={"label": label}):
            try:
                container = containers.read(self._engine.call("GET", f"/containers/{entry['Id']}/json"))
            except EngineRefused as refused:
                if refused.status != 404:  # removed between the two questions
                    raise
                continue
            found.setdefault(container.name, []).append(container)
        for attempts in found.values():
            attempts.sort(key=lambda container: container.attempt)
        return found

    def _advance(self, pod: Object, found: dict[str, list[Container]]) -> float | None:
        """Start what should run; give the time at which a pause ends."""
        until: list[float] = []
        for spec in pod["spec"].get("initContainers") or []:
            last = View(attempts=found).last(spec["name"])
            if podstatus.done(last):
                continue
            if last is None or not last.running:
                self._start(pod, spec, found, until, owner=None, init=True)
            return min(until, default=None)  # the next one waits for this one's end
        owner: str | None = None
        for number, spec in enumerate(pod["spec"]["containers"]):
            last = View(attempts=found).last(spec["name"])
            running = last.id if last and last.running else None
            if running is None:
                running = self._start(pod, spec, found, until, owner=owner)
            if number == 0:
                owner = running
        return min(until, default=None)

    def _start(
        self,
        pod: Object,
        spec: Object,
        found: dict[str, list[Container]],
        until: list[float],
        *,
        owner: str | None,
        init: bool = False,
    ) -> str | None:
        """Start a container that does not run, if its policy, its pauses and its image allow it; give its id."""
        name, attempts = spec["name"], found.get(spec["name"]) or []
        last = attempts[-1] if attempts else None
        if last and last.ended:
            policy = pod["spec"]["restartPolicy"]
            if policy == "Never" or (policy == "OnFailure" and last.exit_code == 0 and not init):
                return None
            ready = self._pause.over(name, last)
            if ready > time.time():
                message = f"back-off {self._pause.seconds(name):.0f}s restarting failed container={name}"
                self._wait(pod, name, Waiting(reason="CrashLoopBackOff", message=message), ready, until)
                return None
        if (pulled := self._pulls.next_at(name)) > time.time():
            back_off = Waiting(reason="ImagePullBackOff", message=f'Back-off pulling image "{spec["image"]}"')
            self._wait(pod, name, back_off, pulled, until)
            return None
        problem = images.ensure(self._engine, spec)
        if problem:
            self.wants_image = True
            if spec.get("imagePullPolicy") == "Never":  # no pause: only dockerd's word of a new image changes this
                self._waiting[name] = problem
                events.record(self._store, pod, "Warning", problem.reason, problem.message)
                return None
            self._pulls.failed(name)
            self._wait(pod, name, problem, self._pulls.next_at(name), until)
            return None
        self._pulls.clear(name)
        for old in attempts[:-1]:  # the last one stays, for `kubectl logs --previous`
            self._engine.call("DELETE", f"/containers/{old.id}", force=True, v=True)
        attempt = last.attempt + 1 if last else 0
        if last and last.state == "created" and not last.ended:  # made by a process that died before it was started
            self._engine.call("DELETE", f"/containers/{last.id}", force=True, v=True)
            attempt = last.attempt
        elif last:
            self._pause.failed(name)
        return self._create(pod, spec, attempt, owner, until)

    def _create(self, pod: Object, spec: Object, attempt: int, owner: str | None, until: list[float]) -> str | None:
        name = spec["name"]
        token = podfolder.volume(self._kubelet.kubelet_dir, pod, "projected", "kube-api-access-stub")
        try:
            podfolder.mount_memory(token)  # empty, since nothing of the stub asks for a token
            body = containers.creation(
                pod,
                spec,
                attempt,
                owner=owner,
                kubelet_dir=self._kubelet.kubelet_dir,
                resolver=self._kubelet.resolver,
            )
            made = self._engine.call("POST", "/containers/create", body, name=containers.full_name(pod, name, attempt))
        except (containers.CannotCreate, Failure) as problem:
            waiting = Waiting(reason="CreateContainerConfigError", message=str(problem))
            self._wait(pod, name, waiting, time.time() + RETRY_SECONDS, until)
            return None
        except EngineRefused as refused:
            waiting = Waiting(reason="CreateContainerError", message=str(refused))
            self._wait(pod, name, waiting, time.time() + RETRY_SECONDS, until)
            return None
        events.record(self._store, pod, "Normal", "Created", f"Container {name} created")
        try:
            self._engine.call("POST", f"/containers/{made['Id']}/start")
        except EngineRefused as refused:  # dockerd keeps the reason in the container's state; the next look sees it
            events.record(self._store, pod, "Warning", "Failed", f"Container {name} cannot start: {refused}")
            self._pause.note_end(name)
            self._wake.set()
            return None
        events.record(self._store, pod, "Normal", "Started", f"Container {name} started")
        return str(made["Id"])

    def _wait(self, pod: Object, name: str, waiting: Waiting, again: float, until: list[float]) -> None:
        self._waiting[name] = waiting
        until.append(again)
        events.record(self._store, pod, "Warning", waiting.reason, waiting.message or waiting.reason)

    def _remove(self, found: dict[str, list[Container]], *, grace: int) -> None:
        """Stop all containers at the same time, then remove them and their anonymous volumes."""

        def end(container: Container) -> None:
            with contextlib.suppress(EngineRefused):  # it is gone already
                if container.running and grace:
                    self._engine.call("POST", f"/containers/{container.id}/stop", t=grace, timeout=grace + 60)
                self._engine.call("DELETE", f"/containers/{container.id}", force=True, v=True)

        every = [container for attempts in found.values() for container in attempts]
        if every:
            with ThreadPoolExecutor(max_workers=len(every)) as pool:
                list(pool.map(end, every))


class Pauses:
    """Growing pauses by container: before restarts, and before pulls."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._end: dict[str, float] = {}

    def seconds(self, name: str) -> float:
        """The pause that is due after the failures so far."""
        count = self._count.get(name, 0)
        return min(BACKOFF_FIRST * 2.0 ** (count - 1), BACKOFF_MOST) if count else 0.0

    def failed(self, name: str) -> None:
        """Count one more failure."""
        self._count[name] = self._count.get(name, 0) + 1
        self.note_end(name)

    def note_end(self, name: str) -> None:
        """Remember now as the time of the last failure."""
        self._end[name] = time.time()

    def clear(self, name: str) -> None:
        """Forget a container's failures."""
        self._count.pop(name, None)
        self._end.pop(name, None)

    def next_at(self, name: str) -> float:
        """When the pause that began with the last failure is over."""
        return self._end.get(name, 0.0) + self.seconds(name)

    def over(self, name: str, last: Container) -> float:
        """When a container that ended may start again; one that ran long has its failures forgiven."""
        started, finished = _seconds(last.started), _seconds(last.finished)
        if finished and finished - started > BACKOFF_FORGIVEN:
            self.clear(name)
        return (finished or self._end.get(name, 0.0)) + self.seconds(name)


def _seconds(moment: str) -> float:
    """A time of dockerd's in seconds; 0 for its zero time."""
    if moment.startswith("0001"):
        return 0.0
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


def _label_filter() -> list[str]:
    return [f"{key}={value}" for key, value in containers.TYPE.items()]
