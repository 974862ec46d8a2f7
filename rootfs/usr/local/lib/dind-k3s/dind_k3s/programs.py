"""The programs under supervisor, for commands that have to stop and start them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dind_k3s import k3s_config
from dind_k3s.kube_api import Kubernetes
from dind_k3s.plan import Mistake, asked
from dind_k3s.root import KUBECONFIG, RUN, at
from dind_k3s.volume import K3S

CONTROL = "/run/supervisor.sock"


def running() -> bool:
    """Whether this is a started container, and not one that runs a single command on a volume."""
    if not Path(CONTROL).is_socket():
        return False
    return subprocess.run(["supervisorctl", "pid"], capture_output=True, check=False).returncode == 0


def refuse_without_server() -> None:
    """Where this container has no cluster of its own."""
    if asked(os.environ, "K3S_DISABLE"):
        raise Mistake("k3s is switched off here (K3S_DISABLE), so there is no cluster")
    server = k3s_config.joins(os.environ)
    if at(f"{RUN}/k3s.args").read_text().startswith("agent\0"):
        raise Mistake(f"this is an agent; its cluster is at {server}")
    if server:
        raise Mistake(f"this server has joined the cluster at {server}: do it on the server that made that cluster")


def refuse_external_datastore() -> None:
    """Where the cluster's objects are not in this volume, which then has no more than the keys to them."""
    name = "datastore-endpoint"
    if endpoint := k3s_config.given(os.environ, name).get(name) or os.environ.get("K3S_DATASTORE_ENDPOINT"):
        raise Mistake(
            f"the cluster's datastore is {endpoint} and not in {K3S}: save and restore it with its own tools, together"
            f" with {K3S}/server/token, which opens it"
        )


def _control(action: str, name: str) -> str:
    done = subprocess.run(["supervisorctl", action, name], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def stop(name: str) -> None:
    output = _control("stop", name)
    if "stopped" not in output and "not running" not in output:
        raise Mistake(f"{name} could not be stopped: {output}")


def start(name: str) -> None:
    output = _control("start", name)
    while "abnormal termination" in output and re.search("STOPP(ING|ED)", _control("status", name)):
        time.sleep(0.2)  # after an interrupted `stop`: what is still ending cannot be started
        output = _control("start", name)
    # A spawn error: it ended within a second, and supervisor tries again. An abnormal termination: a program that does
    # its work once, as preload, had done it before supervisor looked.
    if not any(word in output for word in ("started", "already started", "spawn error", "abnormal termination")):
        raise Mistake(f"{name} could not be started: {output}")


@contextmanager
def stopped(*names: str) -> Iterator[None]:
    """The programs do not run inside, and run again afterwards, whatever happens; the last one is started first."""
    with ExitStack() as stack:
        for name in names:
            stack.callback(start, name)
            stop(name)
        yield


def end_by_exceptions() -> None:
    """SIGTERM and SIGHUP, as when the terminal of a `docker exec -it` goes away, are a KeyboardInterrupt, too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def _pid(name: str) -> int:
    """0 while it does not run."""
    output = _control("pid", name)
    return int(output) if output.isdigit() else 0


def cluster_ready(limit: float) -> str:
    """Wait until the cluster takes pods; empty, or what it still lacks when the time is over."""
    # The API itself first: what the watcher says may still be about the k3s before.
    cluster = Kubernetes(Path(KUBECONFIG))
    end = time.monotonic() + limit
    pid = _pid("k3s")
    again = False
    while problem := cluster.problem():
        if not Path(f"/proc/{pid}").exists():
            if again:  # not as often as makes keeper.py give up the whole container
                return f"k3s ends by itself: see /app/logs/k3s.log; {problem}"
            pid, again = _pid("k3s"), True
        if time.monotonic() >= end:
            return problem
        time.sleep(0.2)
    rest = max(0, round(end - time.monotonic()))
    done = subprocess.run(
        ["wait-ready", "--for", "k8s", "--timeout", f"{rest}"], capture_output=True, text=True, check=False
    )
    return done.stderr.strip().removeprefix("wait-ready: ")
