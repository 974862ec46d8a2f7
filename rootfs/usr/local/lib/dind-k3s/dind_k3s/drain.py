"""drain: every container gets the time that it asked for. k3s has ended before, so none is started again.

A pod's is its terminationGracePeriodSeconds, which kubelet leaves in a label (kubernetes: kuberuntime/labels.go); other
containers have the --stop-timeout that they were made with. What keeps a pod's network goes last, with dockerd.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from dind_k3s.docker_api import Docker

GRACE = "annotation.io.kubernetes.pod.terminationGracePeriod"
SANDBOX = ("io.kubernetes.docker.type", "podsandbox")


def main() -> int:
    docker = Docker()
    try:
        _, answer = docker.ask("GET", "/containers/json", timeout=10)
        chosen = [one for one in json.loads(answer) if one["Labels"].get(SANDBOX[0]) != SANDBOX[1]]
    except (OSError, ValueError) as error:
        print(f"drain: dockerd lists no containers ({error})")
        return 1

    def stop(container: dict[str, dict[str, str]]) -> None:
        grace = container["Labels"].get(GRACE)
        docker.ask("POST", f"/containers/{container['Id']}/stop" + (f"?t={grace}" if grace else ""), timeout=None)

    if chosen:
        with ThreadPoolExecutor(len(chosen)) as pool:
            list(pool.map(stop, chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
