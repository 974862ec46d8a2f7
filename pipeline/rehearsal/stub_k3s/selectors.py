"""Label and field selectors: `a=b,c!=d` over labels, over any path of an object for fields."""

from __future__ import annotations

from dataclasses import dataclass

from .status import ApiError, Object


@dataclass(frozen=True, kw_only=True)
class Selector:
    """What a list or a watch asks for."""

    namespace: str | None  # None: all
    labels: str = ""
    fields: str = ""

    def matches(self, thing: Object) -> bool:
        """Whether an object is asked for."""
        metadata = thing["metadata"]
        if self.namespace is not None and metadata.get("namespace", "") != self.namespace:
            return False
        labels: dict[str, str] = metadata.get("labels") or {}
        return all((labels.get(key, "") == value) is equal for key, equal, value in _parts(self.labels)) and all(
            (_field(thing, key) == value) is equal for key, equal, value in _parts(self.fields)
        )


def _parts(text: str) -> list[tuple[str, bool, str]]:
    """Key, whether it has to be equal, and value of each part."""
    parts = []
    for part in text.split(",") if text else []:
        key, sign, value = part.partition("=")
        if not sign or " " in part:
            raise ApiError(400, f"the stub has no selectors like {part}, only key=value and key!=value")
        parts.append((key.removesuffix("!"), not key.endswith("!"), value.removeprefix("=")))
    return parts


def _field(thing: Object, path: str) -> str:
    value: object = thing
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return "" if value is None else str(value)
