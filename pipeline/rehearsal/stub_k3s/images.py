"""Images for pods: is it here, may it be pulled, did that work."""

from __future__ import annotations

from .engine import Engine, EngineRefused
from .status import Object


def ensure(engine: Engine, spec: Object) -> Object | None:
    """Have the image of a container here; else return why it waits, in the kubelet's words (pkg/kubelet/images)."""
    image, policy = spec["image"], spec["imagePullPolicy"]
    if policy != "Always" and _is_present(engine, image):
        return None
    if policy == "Never":
        message = f'Container image "{image}" is not present with pull policy of Never'
        return {"reason": "ErrImageNeverPull", "message": message}
    problem = _pull(engine, image)
    return {"reason": "ErrImagePull", "message": problem} if problem else None


def _is_present(engine: Engine, image: str) -> bool:
    try:
        engine.call("GET", f"/images/{image}/json")
    except EngineRefused as refused:
        if refused.status == 404:
            return False
        raise
    return True


def _pull(engine: Engine, image: str) -> str:
    """Return the reason when the image could not be pulled."""
    has_tag = "@" in image or ":" in image.rpartition("/")[2]
    problem = ""
    try:
        for report in engine.events("POST", "/images/create", fromImage=image if has_tag else f"{image}:latest"):
            problem = str(report.get("error") or problem)
    except EngineRefused as refused:
        return str(refused)
    return problem
