"""Asks dockerd and k3s whether they are ready, and writes the answer where anybody can read it for nothing.

/run/dind-k3s/ready/{docker,k8s}   there while it is ready; holds the seconds it took
/run/dind-k3s/health               "STATE UPTIME TEXT", STATE is ok, starting or failing; for the HEALTHCHECK
/run/dind-k3s/state.json           all of it, for programs

docker is ready when it answers; k8s when the API server does, a node is Ready and the default service account is there
(without it no pod is admitted). Images of /app/images are part of the health, not of k8s.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from dind_k3s.docker_api import Docker
from dind_k3s.kube_api import Kubernetes
from dind_k3s.root import RUN, at

QUICK, EARLY, STEADY = 0.1, 0.3, 5.0  # seconds between looks: before docker, before k8s, from then on


def uptime() -> float:
    """Seconds since PID 1 began, which is the container's start."""
    began = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def machine_uptime() -> int:
    """Seconds that nobody sets, as the health check reads them."""
    return int(float(Path("/proc/uptime").read_text().split()[0]))


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(path)


def images() -> str:
    """What run-preload last said; empty when there is nothing to load."""
    try:
        return at(f"{RUN}/images").read_text().strip()
    except FileNotFoundError:
        return ""


def main() -> int:
    at(f"{RUN}/ready").mkdir(parents=True, exist_ok=True)
    stages: dict[str, Docker | Kubernetes] = {"docker": Docker()}
    if os.environ.get("DIND_K3S_START_K3S") == "true":
        stages["k8s"] = Kubernetes(Path(os.environ.get("KUBECONFIG", "/app/k3s/k3s.yaml")))
    since: dict[str, float] = {}
    was_ok = False
    while True:
        problems: dict[str, str] = {}
        for stage, target in stages.items():
            problem = next(iter(problems.values()), "") or target.problem()
            flag = at(f"{RUN}/ready/{stage}")
            if problem:
                problems[stage] = problem
                flag.unlink(missing_ok=True)
                if since.pop(stage, None) is not None:
                    print(f"{stage} is not ready any more: {problem}", flush=True)
            elif stage not in since or not flag.exists():  # keeper.py removes it when the program ends
                since[stage] = round(uptime(), 1)
                flag.write_text(f"{since[stage]}\n")
                print(f"{stage} is ready after {since[stage]} s", flush=True)
        loading = images()
        problem = next(iter(problems.values()), "") or (f"images: {loading}" if loading.startswith("loading") else "")
        was_ok = was_ok or not problem
        health = "ok" if not problem else "failing" if was_ok else "starting"
        text = problem or ", ".join(f"{stage} ready after {seconds} s" for stage, seconds in since.items())
        write(at(f"{RUN}/health"), f"{health} {machine_uptime()} {text}\n")
        state = {"health": health, "text": text, "ready_after": since, "problems": problems, "images": loading}
        write(at(f"{RUN}/state.json"), json.dumps(state) + "\n")
        time.sleep(QUICK if "docker" in problems else EARLY if problem else STEADY)


if __name__ == "__main__":
    sys.exit(main())
