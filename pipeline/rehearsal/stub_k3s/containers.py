"""A pod's containers as dockerd's: names, labels, what to create.

Names and labels are cri-dockerd's (core/naming.go, core/sandbox_helpers.go), by which people and scripts find them.
There is no pause container: the pod's first container owns the network, the others join it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import podfolder
from .failure import Failure
from .status import Object

POD_NAME, POD_NAMESPACE, POD_UID = (f"io.kubernetes.pod.{word}" for word in ("name", "namespace", "uid"))
CONTAINER_NAME = "io.kubernetes.container.name"
ATTEMPT = "annotation.io.kubernetes.container.restartCount"
GRACE = "annotation.io.kubernetes.pod.terminationGracePeriod"
_RESOLVER = {"nameserver": "Dns", "search": "DnsSearch", "options": "DnsOptions"}
TYPE = {"io.kubernetes.docker.type": "container"}


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container that dockerd knows, as far as a pod's status needs it."""

    id: str
    attempt: int
    state: str  # created, running, paused, restarting, removing, exited, dead
    exit_code: int
    error: str
    address: str

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.state in ("running", "paused", "restarting")

    @property
    def ended(self) -> bool:
        """Whether it will do no more: its process ended, or dockerd could not start it (created, with an error)."""
        return self.state in ("exited", "dead") or (self.state == "created" and self.error != "")


def read(inspected: Object) -> Container:
    """Make a Container of what dockerd's inspection reports."""
    labels, state = inspected["Config"]["Labels"], inspected["State"]
    networks: dict[str, Any] = inspected["NetworkSettings"].get("Networks") or {}
    return Container(
        id=inspected["Id"],
        attempt=int(labels[ATTEMPT]),
        state=state["Status"],
        exit_code=state["ExitCode"],
        error=state.get("Error") or "",
        address=next((entry["IPAddress"] for entry in networks.values() if entry.get("IPAddress")), ""),
    )


def creation(
    pod: Object, spec: Object, attempt: int, *, owner: str | None, kubelet_dir: Path, resolver: dict[str, list[str]]
) -> Object:
    """The body of dockerd's create request; `owner` is the container whose network this one joins. Raises Failure."""
    metadata = pod["metadata"]
    if any("value" not in entry for entry in spec.get("env") or []):
        raise Failure("the stub has plain values for variables only")
    body: Object = {
        "Image": spec["image"],
        "Env": [f"{entry['name']}={entry['value']}" for entry in spec.get("env") or []],
        "Labels": {
            **TYPE,
            POD_NAME: metadata["name"],
            POD_NAMESPACE: metadata["namespace"],
            POD_UID: metadata["uid"],
            CONTAINER_NAME: spec["name"],
            ATTEMPT: str(attempt),
            GRACE: str(pod["spec"]["terminationGracePeriodSeconds"]),
        },
        "HostConfig": {
            "Binds": _binds(pod, spec, kubelet_dir),
            "LogConfig": {"Type": "json-file"},  # what `kubectl logs` needs, whatever dockerd's default is
            **({"NetworkMode": f"container:{owner}"} if owner else resolver),
        },
    }
    if not owner:
        body["Hostname"] = metadata["name"][:63].rstrip("-.")
    # Kubernetes' command is Docker's entrypoint; an entrypoint set here also drops the image's own arguments.
    for ours, theirs in (("command", "Entrypoint"), ("args", "Cmd")):
        if spec.get(ours):
            body[theirs] = spec[ours]
    return body


def _binds(pod: Object, spec: Object, kubelet_dir: Path) -> list[str]:
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    binds = []
    for mount in spec.get("volumeMounts") or []:
        volume = volumes.get(mount["name"], {})
        if "hostPath" in volume:
            source = Path(volume["hostPath"]["path"])
        elif "emptyDir" in volume:
            source = podfolder.volume(kubelet_dir, pod, "empty-dir", mount["name"])
            if volume["emptyDir"].get("medium") == "Memory":
                podfolder.mount_memory(source)
            if not source.is_dir():
                source.mkdir(parents=True)
                source.chmod(0o777)
        else:
            raise Failure(f"volume {mount['name']}: the stub has only emptyDir and hostPath")
        binds.append(f"{source}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}")
    return binds


def resolver(path: Path) -> dict[str, list[str]]:
    """The resolver that pods get: what --resolv-conf names, as dockerd's create request has it. Raises Failure.

    In a cluster CoreDNS stands between; it asks the same servers. The "." keeps dockerd's own search list out.
    """
    settings: dict[str, list[str]] = {"Dns": [], "DnsSearch": [], "DnsOptions": []}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise Failure(f"cannot read {path} (--resolv-conf): {error.strerror}") from None
    for line in lines:
        key, *values = line.split() or [""]
        if key in _RESOLVER:
            settings[_RESOLVER[key]] += values
    return {**settings, "DnsSearch": settings["DnsSearch"] or ["."]}
