"""A pod's containers in dockerd, and its folder with the tmpfs that the kubelet mounts there.

Names and labels are cri-dockerd's (core/naming.go, core/sandbox_helpers.go), by which people and scripts find them.
There is no pause container: the pod's first container owns the network, the others join it.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import Failure, Object

POD = POD_UID, POD_NAMESPACE, POD_NAME = tuple(f"io.kubernetes.pod.{word}" for word in ("uid", "namespace", "name"))
CONTAINER_NAME = "io.kubernetes.container.name"
ATTEMPT = "annotation.io.kubernetes.container.restartCount"
GRACE = "annotation.io.kubernetes.pod.terminationGracePeriod"
_RESOLVER = {"nameserver": "Dns", "search": "DnsSearch", "options": "DnsOptions"}
TYPE = {"io.kubernetes.docker.type": "container"}

Resolver = dict[str, list[str]]  # the DNS settings of a container, as in dockerd's create request


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container of dockerd, as far as a pod's status depends on it."""

    id: str
    attempt: int
    state: str  # created, running, paused, restarting, removing, exited, dead
    exit_code: int
    error: str

    @property
    def running(self) -> bool:
        """Whether its process is running."""
        return self.state in ("running", "paused", "restarting")

    @property
    def ended(self) -> bool:
        """Whether its process has ended, or dockerd could not start it (created, with an error)."""
        return self.state in ("exited", "dead") or (self.state == "created" and self.error != "")


def read(inspected: Object) -> Container:
    """Return a Container from dockerd's inspection of it."""
    labels, state = inspected["Config"]["Labels"], inspected["State"]
    return Container(
        id=inspected["Id"],
        attempt=int(labels[ATTEMPT]),
        state=state["Status"],
        exit_code=state["ExitCode"],
        error=state.get("Error") or "",
    )


def creation(pod: Object, spec: Object, attempt: int, *, network: Object, kubelet_dir: Path | None) -> Object:
    """Return the body of dockerd's create request. Raises Failure.

    `network`: the container whose network this one joins, or the resolver. `kubelet_dir`: None on an agent's node.
    """
    metadata = pod["metadata"]
    if any("value" not in entry for entry in spec.get("env") or []):
        raise Failure("the stub has only plain values for variables")
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
            "LogConfig": {"Type": "json-file"},  # for `kubectl logs`, whatever dockerd's default is
            **network,
        },
    }
    # Kubernetes' command is Docker's entrypoint; an entrypoint set here also drops the image's own arguments.
    for ours, theirs in (("command", "Entrypoint"), ("args", "Cmd")):
        if spec.get(ours):
            body[theirs] = spec[ours]
    return body


def _binds(pod: Object, spec: Object, kubelet_dir: Path | None) -> list[str]:
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    binds = []
    for mount in spec.get("volumeMounts") or []:
        volume = volumes.get(mount["name"], {})
        if "hostPath" in volume:
            source = Path(volume["hostPath"]["path"])
        elif "emptyDir" in volume and kubelet_dir:
            source = volume_folder(kubelet_dir, pod, "empty-dir", mount["name"])
            if volume["emptyDir"].get("medium") == "Memory":
                mount_memory(source)
            if not source.is_dir():
                source.mkdir(parents=True)
                source.chmod(0o777)
        else:
            raise Failure(f"volume {mount['name']}: the stub has only hostPath, and emptyDir on the server's node")
        binds.append(f"{source}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}")
    return binds


def resolver(path: Path) -> Resolver:
    """Return the settings of --resolv-conf for pods, as in dockerd's create request. Raises Failure.

    In a real cluster CoreDNS forwards to the same servers. The "." keeps dockerd's own search list out.
    """
    settings: Resolver = {"Dns": [], "DnsSearch": [], "DnsOptions": []}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise Failure(f"cannot read {path} (--resolv-conf): {error.strerror}") from None
    for line in lines:
        key, *values = line.split() or [""]
        if key in _RESOLVER:
            settings[_RESOLVER[key]] += values
    return {**settings, "DnsSearch": settings["DnsSearch"] or ["."]}


def volume_folder(kubelet_dir: Path, pod: Object, kind: str, name: str) -> Path:
    """Return the folder of one volume of a pod."""
    return kubelet_dir / "pods" / str(pod["metadata"]["uid"]) / f"volumes/kubernetes.io~{kind}" / name


def mount_memory(folder: Path) -> None:
    """Mount a tmpfs, unless there is one. Raises Failure."""
    if folder.is_mount():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"cannot mount a tmpfs at {folder}: {done.stderr.strip()}")


def remove_folder(folder: Path) -> None:
    """Remove a pod's folder and the mounts in it."""
    for path in (folder / "volumes").glob("*/*"):
        if path.is_mount():
            subprocess.run(["umount", str(path)], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)
