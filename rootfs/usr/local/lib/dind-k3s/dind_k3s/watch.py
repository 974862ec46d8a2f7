"""Watches dockerd, the cluster, preloaded images and manifests, and keeps the board (board.py) true.

Where there is a stream it is followed: dockerd's events end with dockerd, a connection to containerd ends with it, the
API server reports nodes, the default service account, DNS and Addons as they change. Only before there is one do we
ask again and again. Every ten seconds each is asked once whether it hangs, and the clock whether it was set.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from dind_k3s import (
    board,
    certificates,
    clock,
    cluster_dns,
    components,
    containerd,
    kubeconfig,
    manifests,
    preload,
    trial,
    volume,
)
from dind_k3s import problem as k3s_problem
from dind_k3s.board import Board
from dind_k3s.clock import Clock
from dind_k3s.docker_api import Docker
from dind_k3s.kube_api import Kubernetes, Object, Watch, warnings
from dind_k3s.renamed import Former
from dind_k3s.root import KUBECONFIG, RUN, at, facts

QUICK = 0.05  # between two looks for what is not there yet
PROBE = 0.1  # the API server costs more to ask
COMPONENT = 1.0  # between two looks at a component that is not ready
STEADY = 10.0
RENEW_AGAIN = 20 * 3600.0
STALE = 1.0  # a dockerd that has not found its new containerd yet is asked again; it logs a line for each time
TOKENS = 300.0  # a clock that is set back by more leaves pods with tokens that are not valid yet (clock.py)
WAKE = f"{RUN}/wake"  # a pipe: a byte written to it has us look at once

NODES = "/api/v1/nodes"
ACCOUNT = "/api/v1/namespaces/default/serviceaccounts?fieldSelector=metadata.name%3Ddefault"
ADDONS = "/apis/k3s.cattle.io/v1/namespaces/kube-system/addons"


def follow_docker(docker: Docker, found: Board) -> None:
    """Ping until it answers, then wait for its end. For ever."""
    pause = threading.Event()
    while True:
        problem = docker.problem()
        found.report("docker", problem)
        if problem:
            pause.wait(QUICK)
            continue
        began = time.monotonic()
        docker.until_it_ends()
        if time.monotonic() - began < 1 and not docker.problem():
            pause.wait(1)  # it lives, but reports no events


def follow_containerd(docker: Docker, found: Board) -> None:
    """Connect until it answers, then wait for its end. For ever.

    After the first time it is there again only when dockerd has found it, too; at its own start dockerd waits for it.
    """
    pause = threading.Event()
    again = False
    while True:
        try:
            connection = containerd.connect()
        except OSError as error:
            # dockerd was given one from elsewhere, or else it has written its own one's pid before it answers. So it is
            # asked first: the other way round a start that happens in between looks like a containerd of somebody else.
            theirs = not docker.problem() and not containerd.PID.exists()
            found.report("containerd", f"containerd does not answer ({error.strerror or error})", disabled=theirs)
            pause.wait(STEADY if theirs else QUICK)
            continue
        with connection:  # perhaps to one whose sockets are being closed, one after the other
            if again and not docker.has_containerd():
                pause.wait(QUICK if docker.problem() else STALE)
                continue
            again = True
            found.report("containerd", "")
            containerd.until_it_ends(connection)
            found.report("containerd", "containerd has ended")


class Wake:
    """Ends the wait of the main loop, from other threads and from other programs."""

    def __init__(self) -> None:
        path = at(WAKE)
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def up(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._pipe, b"\n")

    def wait(self, seconds: float) -> bool:
        """Whether it was ended so."""
        woken = bool(select.select([self._pipe], [], [], seconds)[0])
        if woken:
            os.read(self._pipe, 4096)
        return woken


class Cluster:
    """The sources that are k3s's."""

    def __init__(self, role: str, found: Board, wake: Wake) -> None:
        self._board = found
        self._wake = wake
        self._server = role == "server"
        self._kubernetes = Kubernetes(Path(KUBECONFIG if self._server else volume.KUBELET))
        self._kubernetes.on_loss = wake.up
        self._former = Former()
        self._nodes: dict[str, Object] = {}
        self._endpoints: dict[str, Object] | None = None
        self._addons: dict[str, Object] = {}
        self._pods: dict[str, Object] = {}
        self._components_asked = -STEADY
        self._dns_asked = -STEADY
        self._dns_failures = 0
        self._renewed = -RENEW_AGAIN
        self._started = False
        self._told: set[str] = set()

    def probe(self) -> float:
        """Ask the API server; the seconds until it should be asked again."""
        problem = self._kubernetes.problem()
        if not problem:  # before the API server is called ready again, so that no stage is ready for a moment
            self._board.report("kubelet", components.kubelet_problem())
            self._board.report("network", components.network_problem())
            self._board.report("node", components.node_problem(self._nodes) or self._former_problem())
        untimely = certificates.problem(self._kubernetes.certificate) if problem else ""
        theirs = k3s_problem.read("k3s") if problem else ""  # k3s's own words say more than the API's silence
        self._board.report("api", untimely or theirs or problem)
        if problem:
            self._kubernetes.up.clear()
            return STEADY if untimely and self._started else PROBE
        if not self._kubernetes.up.is_set():
            self._kubernetes.up.set()
            self._check_certificates()
            kubeconfig.copy_for_testcontainers()
        if not self._started:
            self._started = True
            self._start_watches()
        if self._board.problem("kubelet") or self._board.problem("network"):
            return PROBE
        if not self._server or any(self._board.problem(source) for source in board.KUBERNETES):
            return STEADY  # what ends such a problem wakes us
        return min(self._check_dns(), self._check_components())

    def _former_problem(self) -> str:
        """Of a node that was renamed, what is left of the one before."""
        try:
            return self._former.problem(self._kubernetes, self._nodes) if self._server else ""
        except (OSError, KeyError, ValueError) as error:
            return f"the Node of this machine's former name cannot be deleted: {error}"

    def _start_watches(self) -> None:
        watches = [Watch(self._kubernetes, self._node_path(), self._tell_node)]
        if self._server:
            watches.append(Watch(self._kubernetes, ACCOUNT, self._tell_account))
            watches.append(Watch(self._kubernetes, cluster_dns.ENDPOINTS, self._tell_endpoints))
            watches.append(Watch(self._kubernetes, ADDONS, self._tell_addons))
            watches.append(Watch(self._kubernetes, components.PODS, self._tell_pods))
        for one in watches:
            one.start()

    def _node_path(self) -> str:
        """All nodes; for an agent its own, for which its credentials are."""
        if self._server:
            return NODES
        return f"{NODES}?fieldSelector=metadata.name%3D{certificates.node_of(self._kubernetes.certificate)}"

    def _tell_node(self, nodes: dict[str, Object] | None) -> None:
        self._nodes = dict(nodes or {})
        self._wake.up()

    def _tell_account(self, accounts: dict[str, Object] | None) -> None:
        self._board.report("account", "" if accounts else "the default service account is not there yet")
        self._wake.up()

    def _tell_endpoints(self, endpoints: dict[str, Object] | None) -> None:
        self._endpoints = dict(endpoints or {})
        self._dns_asked = -STEADY
        self._dns_failures = 0
        self._wake.up()

    def _tell_addons(self, addons: dict[str, Object] | None) -> None:
        self._addons = dict(addons or {})
        self.check_manifests()

    def _tell_pods(self, pods: dict[str, Object] | None) -> None:
        self._pods = dict(pods or {})
        self._components_asked = -STEADY
        self._wake.up()

    def _check_components(self) -> float:
        """Look at k3s's own components; the seconds until the next look."""
        waits = any(self._board.problem(component.name) for component in components.ALL)
        if time.monotonic() - self._components_asked >= (COMPONENT if waits else STEADY):
            self._components_asked = time.monotonic()
            for component in components.ALL:
                self._check_component(component)
        return COMPONENT if any(self._board.problem(component.name) for component in components.ALL) else STEADY

    def _check_component(self, component: components.Component) -> None:
        try:
            if not component.enabled(self._kubernetes):
                self._board.report(component.name, "", disabled=True)
                return
            problem = components.problem(component, self._kubernetes, self._pods)
        except (OSError, KeyError, ValueError):
            return  # the next probe reports what the API server lacks
        self._report(component.name, problem)

    def _report(self, source: str, problem: str) -> None:
        """Report it; as permanent if an image is missing, nothing leads out and all of /app/images is loaded."""
        in_vain = components.lacks_image(problem) and "offline" in facts() and not self._board.problem("images")
        hint = "; this container has no network: use the -airgap image, or put k3s's images into /app/images"
        self._board.report(source, f"{problem}{hint}" if in_vain else problem, failed=in_vain)

    def _check_dns(self) -> float:
        """Seconds until the next look at everything here."""
        if not cluster_dns.enabled():
            self._board.report("dns", "", disabled=True)
        elif not cluster_dns.has_addresses(self._endpoints):
            self._report("dns", f"CoreDNS is not ready{self._why_no_dns()}")
        elif self._board.problem("dns") or time.monotonic() - self._dns_asked > STEADY:
            self._dns_asked = time.monotonic()
            problem = cluster_dns.problem(self._kubernetes)
            self._board.report("dns", problem)
            self._dns_failures = self._dns_failures + 1 if problem else 0
            return min(PROBE * 1.2**self._dns_failures, STEADY) if problem else STEADY
        return STEADY

    def _why_no_dns(self) -> str:
        try:
            why = components.reason(components.COREDNS, self._kubernetes, self._pods)
        except (OSError, KeyError, ValueError):
            return ""
        return f": {why}" if why else ""

    def look(self) -> None:
        """What no event reports: edits of manifests, the end of certificates."""
        if not self._server:
            return
        for line in manifests.sync():
            if line not in self._told:
                self._told.add(line)
                print(f"manifests: {line}", flush=True)
        kubeconfig.copy_for_testcontainers()
        self.check_manifests()
        self._check_certificates()

    def check_manifests(self) -> None:
        """Compare what k3s applied with what there is to apply."""
        expected = manifests.expected()
        missing = [
            name
            for name, checksum in expected.items()
            if self._addons.get(name, {}).get("spec", {}).get("checksum") != checksum
        ]
        self._board.detail("manifests", {name: "waiting" if name in missing else "applied" for name in expected})
        reasons = self._reasons() if missing and self._kubernetes.up.is_set() else {}
        words = [f"{name} ({reasons[name]})" if name in reasons else name for name in missing]
        self._board.report("manifests", f"not applied yet: {', '.join(words)}" if words else "")

    def _reasons(self) -> dict[str, str]:
        """Addon → what k3s last complained of."""
        try:
            events = warnings(self._kubernetes, "Addon")
        except (OSError, KeyError, ValueError):
            return {}
        return {event["involvedObject"]["name"]: str(event.get("message")) for event in events}

    def _check_certificates(self) -> None:
        days = certificates.days_left(self._kubernetes.certificate)
        if days is None:
            return
        self._board.detail("certificates", {"days_left": days})
        self._board.detail("warning", certificates.warning(days))
        window = os.environ.get("K3S_RENEW_HOURS", "")
        if days < 0 and self._kubernetes.up.is_set():  # not one that was stopped; one that starts renews them anyway
            reason = "certificates have ended, and nothing of the cluster answers any more: k3s is restarted"
        elif certificates.warning(days) and certificates.in_window(window, time.localtime().tm_hour):
            reason = f"certificates end in {days} days: k3s is restarted, as K3S_RENEW_HOURS={window} allows"
        else:
            return
        if time.monotonic() - self._renewed > RENEW_AGAIN:
            self._renewed = time.monotonic()
            print(reason, flush=True)
            restart_k3s()

    def mind_the_clock(self, by: float) -> str:
        """What it means to the cluster that the clock was set by so many seconds. What helps is done."""
        self._kubernetes.forget()  # a connection that is open asks for no certificate any more, every new one does
        self._renewed = -RENEW_AGAIN
        if problem := certificates.problem(self._kubernetes.certificate):
            self._check_certificates()
            return problem
        if by > -TOKENS or not self._server or not self._kubernetes.up.is_set():
            return "the cluster's certificates are good for that, too"
        restart_k3s()
        return "k3s was restarted, because the tokens that pods have are not valid yet"


def restart_k3s() -> None:
    """Pods run on."""
    subprocess.run(["supervisorctl", "restart", "k3s"], stdout=subprocess.DEVNULL, check=False)


def check_images(found: Board) -> None:
    """What run-preload says of /app/images."""
    try:
        state = json.loads(at(preload.STATE).read_text())
    except FileNotFoundError:
        state = {}
    images: dict[str, dict[str, object]] = state.get("images", {})
    found.detail("images", images)
    failed = [f"{name} ({image.get('text')})" for name, image in images.items() if image["state"] == "failed"]
    waiting = [name for name, image in images.items() if image["state"] in ("waiting", "loading")]
    if waiting or (not images and preload.files()):
        found.report("images", f"images are being loaded: {len(waiting) or 'all'} to go")
    else:
        found.report(
            "images", f"images that cannot be loaded: {', '.join(failed)}" if failed else "", failed=bool(failed)
        )


def role() -> str:
    """What run-k3s makes of this container; empty without k3s."""
    if os.environ.get("DIND_K3S_START_K3S") != "true":
        return ""
    return at(f"{RUN}/k3s.args").read_text().partition("\0")[0]


def main() -> int:
    what = role()
    found = Board(board.STAGES if what else board.ALONE, what or "none")
    if what == "agent":
        for source in ("account", "dns", *board.COMPONENTS, "manifests"):  # the server's matter
            found.report(source, "", disabled=True)
    wake = Wake()
    docker = Docker()
    for follow in (follow_docker, follow_containerd, trial.follow):
        threading.Thread(target=follow, args=(docker, found), daemon=True).start()
    cluster = Cluster(what, found, wake) if what else None
    of_the_day = Clock()
    looked = -STEADY
    while True:
        if by := of_the_day.jump():
            means = [cluster.mind_the_clock(by)] if cluster else []
            print("; ".join([clock.description(by), *means]), flush=True)
            looked = -STEADY
        pause = cluster.probe() if cluster else STEADY
        check_images(found)
        if time.monotonic() - looked >= STEADY:
            looked = time.monotonic()
            found.report("docker", docker.problem())  # one that hangs keeps its streams open
            if cluster:
                cluster.look()
            found.heartbeat()
        if wake.wait(pause):
            looked = -STEADY


if __name__ == "__main__":
    sys.exit(main())
