"""A pod's containers as dockerd's: names, labels, what to create.

Names and labels are cri-dockerd's (core/naming.go, core/sandbox_helpers.go), by which people and scripts find them.
There is no pause container: the pod's first container owns the network, the others join it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import podfolder
from .resolver import Resolver
from .status import Object

POD_NAME, POD_NAMESPACE, POD_UID = (f"io.kubernetes.pod.{word}" for word in ("name", "namespace", "uid"))
CONTAINER_NAME = "io.kubernetes.container.name"
ATTEMPT = "annotation.io.kubernetes.container.restartCount"
GRACE = "annotation.io.kubernetes.pod.terminationGracePeriod"
TYPE = {"io.kubernetes.docker.type": "container"}


class CannotCreate(Exception):
    """The stand-in, or the machine, lacks what this container asks for; the text is shown as its waiting message."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container that dockerd knows, as far as a pod's status needs it."""

    id: str
    name: str
    attempt: int
    state: str  # created, running, paused, restarting, removing, exited, dead
    exit_code: int
    out_of_memory: bool
    error: str
    started: str
    finished: str
    image_id: str
    address: str
    tty: bool

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.state in ("running", "paused", "restarting")

    @property
    def ended(self) -> bool:
        """Whether it will do no more: its process ended, or dockerd could not start it (created, with an error)."""
        return self.state in ("exited", "dead") or (self.state == "created" and self.error != "")


def read(inspected: Object) -> Container:
    """Make a Container of what dockerd's inspection says."""
    labels, state = inspected["Config"].get("Labels") or {}, inspected["State"]
    # One that could not be started has zero times, which no client likes.
    times = [
        inspected["Created"] if state[key].startswith("0001") else state[key] for key in ("StartedAt", "FinishedAt")
    ]
    networks: dict[str, Any] = inspected["NetworkSettings"].get("Networks") or {}
    return Container(
        id=inspected["Id"],
        name=labels.get(CONTAINER_NAME, ""),
        attempt=int(labels.get(ATTEMPT, "0")),
        state=state["Status"],
        exit_code=state["ExitCode"],
        out_of_memory=bool(state.get("OOMKilled")),
        error=state.get("Error") or "",
        started=moment(times[0]),
        finished=moment(times[1]),
        image_id=inspected["Image"],
        address=next((entry["IPAddress"] for entry in networks.values() if entry.get("IPAddress")), ""),
        tty=bool(inspected["Config"].get("Tty")),
    )


def moment(text: str) -> str:
    """Docker's time in Kubernetes' form, without its nanoseconds."""
    return re.sub(r"\.\d+(?=Z|[+-])", "", text)


def labels_of(pod: Object, name: str, attempt: int) -> dict[str, str]:
    """The labels by which a container is found again."""
    metadata = pod["metadata"]
    return {
        **TYPE,
        POD_NAME: metadata["name"],
        POD_NAMESPACE: metadata["namespace"],
        POD_UID: metadata["uid"],
        CONTAINER_NAME: name,
        ATTEMPT: str(attempt),
        GRACE: str(pod["spec"].get("terminationGracePeriodSeconds", 30)),
    }


def full_name(pod: Object, name: str, attempt: int) -> str:
    """The container's name at dockerd."""
    metadata = pod["metadata"]
    return f"k8s_{name}_{metadata['name']}_{metadata['namespace']}_{metadata['uid']}_{attempt}"


def creation(
    pod: Object, spec: Object, attempt: int, *, owner: str | None, kubelet_dir: Path, resolver: Resolver
) -> Object:
    """The body of dockerd's create request; `owner` is the container whose network this one joins."""
    pod_spec = pod["spec"]
    security = {**(pod_spec.get("securityContext") or {}), **(spec.get("securityContext") or {})}
    host: Object = {
        "Binds": _binds(pod, spec, kubelet_dir),
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "json-file"},  # what `kubectl logs` needs, whatever dockerd's default is
        "Privileged": bool(security.get("privileged")),
        "CapAdd": (security.get("capabilities") or {}).get("add") or [],
        "CapDrop": (security.get("capabilities") or {}).get("drop") or [],
        "ReadonlyRootfs": bool(security.get("readOnlyRootFilesystem")),
        "PidMode": "host" if pod_spec.get("hostPID") else "",
        "NetworkMode": "host" if pod_spec.get("hostNetwork") else f"container:{owner}" if owner else "default",
    }
    if not owner and not pod_spec.get("hostNetwork"):
        # In a cluster CoreDNS stands between; it asks the same servers. "." keeps dockerd's own search list out.
        host.update(Dns=resolver.servers, DnsSearch=resolver.search or ["."], DnsOptions=resolver.options)
    body: Object = {
        "Image": spec["image"],
        "Env": _environment(pod, spec),
        "Labels": labels_of(pod, spec["name"], attempt),
        "Tty": bool(spec.get("tty")),
        "OpenStdin": bool(spec.get("stdin")),
        "StdinOnce": bool(spec.get("stdinOnce")),
        "HostConfig": host,
    }
    # Kubernetes' command is Docker's entrypoint; an entrypoint set here also drops the image's own arguments.
    for ours, theirs in (("command", "Entrypoint"), ("args", "Cmd"), ("workingDir", "WorkingDir")):
        if spec.get(ours):
            body[theirs] = spec[ours]
    if "runAsUser" in security:
        group = f":{security['runAsGroup']}" if "runAsGroup" in security else ""
        body["User"] = f"{security['runAsUser']}{group}"
    if not owner and not pod_spec.get("hostNetwork"):
        body["Hostname"] = (pod_spec.get("hostname") or pod["metadata"]["name"])[:63].rstrip("-.")
    return body


def _environment(pod: Object, spec: Object) -> list[str]:
    metadata = pod["metadata"]
    fields = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
    }
    if spec.get("envFrom"):
        raise CannotCreate("the stand-in has no envFrom")
    words = []
    for entry in spec.get("env") or []:
        value = entry.get("value") or ""
        if source := entry.get("valueFrom"):
            path = (source.get("fieldRef") or {}).get("fieldPath", "")
            if path not in fields:
                raise CannotCreate(f"the stand-in has no value for the variable {entry['name']} from {source}")
            value = fields[path]
        words.append(f"{entry['name']}={value}")
    return words


def _binds(pod: Object, spec: Object, kubelet_dir: Path) -> list[str]:
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    binds = []
    for mount in spec.get("volumeMounts") or []:
        volume = volumes.get(mount["name"])
        if volume is None:
            raise CannotCreate(f"volumeMounts: there is no volume {mount['name']}")
        if "hostPath" in volume:
            source = Path(volume["hostPath"]["path"])
            kind = volume["hostPath"].get("type") or ""
            if kind in ("Directory", "File", "Socket") and not source.exists():
                raise CannotCreate(f"hostPath {source} does not exist")
            if kind == "DirectoryOrCreate":
                source.mkdir(parents=True, exist_ok=True)
        elif "emptyDir" in volume:
            source = podfolder.volume(kubelet_dir, pod, "empty-dir", mount["name"])
            if (volume["emptyDir"] or {}).get("medium") == "Memory":
                podfolder.mount_memory(source)
            if not source.is_dir():
                source.mkdir(parents=True)
                source.chmod(0o777)
        else:
            raise CannotCreate(f"volume {mount['name']}: the stand-in has only emptyDir and hostPath")
        if mount.get("subPath"):
            source = source / mount["subPath"]
            source.mkdir(parents=True, exist_ok=True)
        binds.append(f"{source}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}")
    return binds
