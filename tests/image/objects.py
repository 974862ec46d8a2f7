"""Objects of Kubernetes that tests make. kubectl gets them as JSON on its stdin."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.image.box import Box


def create(box: Box, *things: dict[str, Any]) -> None:
    """`kubectl create`, whatever quotes the objects hold."""
    text = "\n---\n".join(json.dumps(thing) for thing in things)
    box.shell(f"base64 -d <<<{base64.b64encode(text.encode()).decode()} | kubectl create -f - >/dev/null")


def config_map(name: str, **data: str) -> dict[str, Any]:
    """The cheapest object there is."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def pod(name: str, *command: str, volume: dict[str, Any] | None = None, grace: int = 30) -> dict[str, Any]:
    """A pod of the image mine:1; the volume is its /data."""
    container: dict[str, Any] = {"name": "one", "image": "mine:1", "imagePullPolicy": "Never", "command": [*command]}
    spec: dict[str, Any] = {"terminationGracePeriodSeconds": grace, "containers": [container]}
    if volume:
        spec["volumes"] = [{"name": "data", **volume}]
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def wait_for_pods(box: Box) -> None:
    """Until all of them are Ready."""
    box.kubectl("wait", "--for=condition=Ready", "pods", "--all", "--timeout=60s")
