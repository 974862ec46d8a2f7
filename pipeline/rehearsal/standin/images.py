"""Images for pods: is it here, may it be pulled, did that work."""

from __future__ import annotations

from .engine import Engine, EngineRefused
from .podstatus import Waiting
from .status import Object


def ensure(engine: Engine, spec: Object) -> Waiting | None:
    """Have the image of a container here; else say why it waits, in the kubelet's words (pkg/kubelet/images)."""
    image, policy = spec["image"], spec.get("imagePullPolicy", "IfNotPresent")
    if policy != "Always" and present(engine, image):
        return None
    if policy == "Never":
        message = f'Container image "{image}" is not present with pull policy of Never'
        return Waiting(reason="ErrImageNeverPull", message=message)
    problem = pull(engine, image)
    return Waiting(reason="ErrImagePull", message=problem) if problem else None


def present(engine: Engine, image: str) -> bool:
    """Whether dockerd has an image of that name."""
    try:
        engine.call("GET", f"/images/{image}/json")
    except EngineRefused as refused:
        if refused.status == 404:
            return False
        raise
    return True


def pull(engine: Engine, image: str) -> str:
    """Pull an image; the reason when it could not be pulled."""
    name, tag = split(image)
    problem = ""
    try:
        for report in engine.events("POST", "/images/create", fromImage=name, tag=tag):
            problem = str(report.get("error") or problem)
    except EngineRefused as refused:
        return str(refused)
    return problem


def split(image: str) -> tuple[str, str]:
    """Name and tag, or name and digest; `latest` when there is neither."""
    if "@" in image:
        name, _, digest = image.partition("@")
        return name, digest
    head, slash, last = image.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{head}{slash}{name}", tag or "latest"
