"""Label and field selectors: `a=b,c!=d,e in (f,g),h,!i` over labels, `metadata.name=x` over any path of an object."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .status import ApiError, Object

_SET = re.compile(r"([^\s!=,()]+)\s+(in|notin)\s+\(([^)]*)\)")
_PART = re.compile(r"(?:[^,(]|\([^)]*\))+")


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
        if not all(_label(part.strip(), labels) for part in _PART.findall(self.labels)):
            return False
        return all(_field(part.strip(), thing) for part in self.fields.split(",") if part.strip())


def _label(part: str, labels: dict[str, str]) -> bool:
    if found := _SET.fullmatch(part):
        values = {value.strip() for value in found[3].split(",")}
        # "notin" also takes objects that lack the label (kubernetes: labels.Requirement.Matches).
        return (labels.get(found[1]) in values) if found[2] == "in" else (labels.get(found[1]) not in values)
    compare = _comparison(part)
    if compare:
        key, equal, value = compare
        return (labels.get(key) == value) is equal
    return part[1:].strip() not in labels if part.startswith("!") else part in labels


def _field(part: str, thing: Object) -> bool:
    compare = _comparison(part)
    if not compare:
        raise ApiError(400, f"invalid field selector: {part}")
    key, equal, value = compare
    found: object = thing
    for step in key.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return (("" if found is None else str(found)) == value) is equal


def _comparison(part: str) -> tuple[str, bool, str] | None:
    for operator, equal in (("!=", False), ("==", True), ("=", True)):
        key, there, value = part.partition(operator)
        if there:
            return key.strip(), equal, value.strip()
    return None
