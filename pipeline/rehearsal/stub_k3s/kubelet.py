"""The kubelet's configuration, merged as k3s and kubelet do it: defaults, drop-in files, flags; the last one wins.

The stub uses only systemReserved. All settings are at /api/v1/nodes/NAME/proxy/configz, as kubelet's, for tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import Failure

# Deprecated flags that kubelet still has → keys of its configuration.
_KEYS = {
    "image-gc-high-threshold": "imageGCHighThresholdPercent",
    "eviction-hard": "evictionHard",
    "system-reserved": "systemReserved",
    "fail-cgroupv1": "failCgroupV1",
}
_REMOVED = ("network-plugin", "containerd")  # flags that kubelet does not have


def effective(arguments: list[str], data_dir: Path) -> dict[str, Any]:
    """Return the merged settings. Raises Failure with kubelet's error message."""
    settings: dict[str, Any] = {
        "imageGCHighThresholdPercent": 85,
        "evictionHard": {"imagefs.available": "5%", "nodefs.available": "5%"},
    }
    for file in sorted((data_dir / "agent/etc/kubelet.conf.d").glob("*.conf")):
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))  # which is YAML, too
        except ValueError as error:
            raise Failure(f"{file} cannot be decoded (the stub reads JSON only): {error}") from None
        for key, value in content.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value  # maps are merged
    for argument in arguments:
        flag, _, text = argument.lstrip("-").partition("=")
        if flag in _REMOVED:
            raise Failure(f"failed to parse kubelet flag: unknown flag: --{flag}")
        if flag in _KEYS:
            settings[_KEYS[flag]] = _value(flag, text)
    return settings


def _value(flag: str, text: str) -> Any:
    signs = {"eviction-hard": "<", "system-reserved": "="}
    if flag in signs:
        return dict(part.split(signs[flag], 1) for part in text.split(","))
    return text == "true" if text in ("true", "false") else int(text)


def allocatable(capacity: dict[str, str], reserved: dict[str, str]) -> dict[str, str]:
    """Return a node's capacity without the reserved part."""
    left = dict(capacity)
    if "cpu" in reserved:
        left["cpu"] = f"{int(capacity['cpu']) * 1000 - int(reserved['cpu'].removesuffix('m'))}m"
    if "memory" in reserved:
        kibibytes = int(capacity["memory"].removesuffix("Ki")) - int(reserved["memory"].removesuffix("Mi")) * 1024
        left["memory"] = f"{kibibytes}Ki"
    return left
