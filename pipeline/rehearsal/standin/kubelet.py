"""The kubelet's configuration, put together as k3s and kubelet do: defaults, drop-in files, flags; the last one wins.

Of its settings the stand-in acts on systemReserved and failCgroupV1. All are shown at /api/v1/nodes/NAME/proxy/configz,
as kubelet shows them, so that a test can ask what is in force. Unknown keys are refused, where kubelet would only warn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .failure import Failure
from .flags import since

# k3s reads <data-dir>/agent/etc/kubelet.conf.d from here on (k3s-io/k3s#2116).
DROP_INS_SINCE = (1, 32, 1)

# Flag → key. The flags are deprecated and still there.
_KEYS = {
    "image-gc-high-threshold": "imageGCHighThresholdPercent",
    "image-gc-low-threshold": "imageGCLowThresholdPercent",
    "eviction-hard": "evictionHard",
    "system-reserved": "systemReserved",
    "kube-reserved": "kubeReserved",
    "max-pods": "maxPods",
    "fail-swap-on": "failSwapOn",
    "fail-cgroupv1": "failCgroupV1",
    "cgroup-driver": "cgroupDriver",
    "resolv-conf": "resolvConf",
    "container-log-max-size": "containerLogMaxSize",
    "container-log-max-files": "containerLogMaxFiles",
}
_OTHER_KEYS = {"apiVersion", "kind", "evictionSoft", "evictionMinimumReclaim", "serializeImagePulls", "featureGates"}
_OTHER_KEYS |= {"imageMaximumGCAge", "shutdownGracePeriod", "memorySwap", "cpuManagerPolicy", "clusterDNS"}
_SINCE = {"fail-cgroupv1": ((1, 31, 0),), "failCgroupV1": ((1, 31, 0),), "config-dir": ((1, 28, 0),)}
_UNTIL = {"network-plugin": (1, 24), "container-runtime": (1, 27), "containerd": (1, 37)}


def effective(arguments: list[str], data_dir: Path, version: tuple[int, ...]) -> dict[str, Any]:
    """What is in force, or a sentence on what kubelet would not take."""
    found: dict[str, Any] = {
        "imageGCHighThresholdPercent": 85,
        "evictionHard": {"imagefs.available": "5%", "nodefs.available": "5%"},
        "failSwapOn": False,
        "failCgroupV1": version >= (1, 35),
    }
    if version >= DROP_INS_SINCE:
        for file in sorted((data_dir / "agent/etc/kubelet.conf.d").glob("*.conf")):
            for key, value in _drop_in(file, version).items():
                found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value  # maps are merged
    for argument in arguments:
        flag, _, value = argument.lstrip("-").partition("=")
        if not since(_SINCE.get(flag, ()), version) or version >= _UNTIL.get(flag, (99,)):
            raise Failure(f"failed to parse kubelet flag: unknown flag: --{flag}")
        if flag in _KEYS:
            found[_KEYS[flag]] = _value(flag, value)
    return {key: value for key, value in found.items() if since(_SINCE.get(key, ()), version)}


def refusal(settings: dict[str, Any]) -> str:
    """Why kubelet does not start on this host; empty when it does."""
    if settings.get("failCgroupV1") and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "kubelet is configured to not run on a host using cgroup v1 (failCgroupV1)"
    return ""


def _drop_in(file: Path, version: tuple[int, ...]) -> dict[str, Any]:
    """One file; JSON only, which is YAML too."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Failure(f"{file} cannot be decoded (the stand-in reads JSON only): {error}") from None
    if not isinstance(read, dict) or read.get("kind") != "KubeletConfiguration":
        raise Failure(f"{file} is no KubeletConfiguration")
    for key in read:
        if key not in _KEYS.values() and key not in _OTHER_KEYS:
            raise Failure(f"{file} has a key that the stand-in does not know: {key}")
        if not since(_SINCE.get(key, ()), version):
            raise Failure(f"{file} has a key that this version does not know: {key}")
    return {key: value for key, value in read.items() if key not in ("apiVersion", "kind")}


def _value(flag: str, text: str) -> Any:
    if flag == "eviction-hard":
        return dict(part.split("<", 1) for part in text.split(",") if "<" in part)
    if flag.endswith("-reserved"):
        return dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdecimal() else text


def allocatable(capacity: dict[str, str], reserved: dict[str, str]) -> dict[str, str]:
    """What is left of a node for pods."""
    left = dict(capacity)
    if "cpu" in reserved:
        left["cpu"] = f"{int(capacity['cpu']) * 1000 - int(reserved['cpu'].removesuffix('m'))}m"
    if "memory" in reserved:
        kibibytes = int(capacity["memory"].removesuffix("Ki")) - int(reserved["memory"].removesuffix("Mi")) * 1024
        left["memory"] = f"{kibibytes}Ki"
    return left
