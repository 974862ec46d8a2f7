"""Patches: JSON merge (RFC 7386), JSON (RFC 6902), and strategic merge as far as pods, services and nodes need it.

Strategic merge is JSON merge but for lists of objects with a name-like key, which are merged item by item
(kubernetes: the `patchMergeKey` tags of staging/src/k8s.io/api/core/v1/types.go).
"""

from __future__ import annotations

import copy
from typing import Any

from .status import ApiError, Object

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON = "application/json-patch+json"

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "secrets": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "conditions": "type",
    "addresses": "type",
    "ownerReferences": "uid",
    "hostAliases": "ip",
}


def apply(media_type: str, thing: Object, patch: Any) -> Object:
    """Give the patched object; the one given stays as it is."""
    thing = copy.deepcopy(thing)
    if media_type == JSON:
        if not isinstance(patch, list):
            raise ApiError(400, "a JSON patch is a list of operations")
        for operation in patch:
            thing = _operate(thing, operation)
        return thing
    if media_type not in (MERGE, STRATEGIC):
        raise ApiError(
            415, f"the stand-in has no patches of type {media_type or 'none'}; it has {MERGE}, {STRATEGIC}, {JSON}"
        )
    if not isinstance(patch, dict):
        raise ApiError(400, "a merge patch is an object")
    merged: Object = _merge(thing, patch, strategic=media_type == STRATEGIC)
    return merged


def _merge(old: Any, new: dict[str, Any], *, strategic: bool) -> Any:
    if strategic and new.get("$patch") == "replace":
        return {key: value for key, value in new.items() if key != "$patch"}
    result: dict[str, Any] = dict(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        if strategic and key.startswith("$"):
            _directive(result, key, value)
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = _merge(result.get(key), value, strategic=strategic)
        elif strategic and isinstance(value, list) and (merge_key := _merge_key(key, value)):
            result[key] = _merge_list(result.get(key) or [], value, merge_key)
        else:
            result[key] = value
    return result


def _directive(result: dict[str, Any], key: str, value: Any) -> None:
    """Act on `$retainKeys` and `$deleteFromPrimitiveList/x`; `$setElementOrder/x` only orders and changes nothing."""
    if key == "$retainKeys":
        for gone in [name for name in result if name not in value]:
            del result[gone]
    elif key.startswith("$deleteFromPrimitiveList/"):
        name = key.partition("/")[2]
        result[name] = [item for item in result.get(name) or [] if item not in value]


def _merge_key(name: str, items: list[Any]) -> str | None:
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    if name == "ports":  # a container's by containerPort, a service's by port
        return "containerPort" if any("containerPort" in item for item in items) else "port"
    return _MERGE_KEYS.get(name)


def _merge_list(old: list[Any], new: list[Any], key: str) -> list[Any]:
    result = list(old)
    for item in new:
        if item == {"$patch": "replace"}:
            return [other for other in new if other is not item]
        at = next((i for i, other in enumerate(result) if other.get(key) == item.get(key)), None)
        if item.get("$patch") == "delete":
            if at is not None:
                del result[at]
        elif at is None:
            result.append(item)
        else:
            result[at] = _merge(result[at], item, strategic=True)
    return result


def _operate(thing: Object, operation: Any) -> Object:
    try:
        kind, path = operation["op"], operation["path"]
        if kind in ("move", "copy"):
            value = copy.deepcopy(_at(thing, operation["from"]))
            if kind == "move":
                _set(thing, operation["from"], None, "remove")
            _set(thing, path, value, "add")
        elif kind == "test":
            if _at(thing, path) != operation["value"]:
                raise ApiError(422, f"JSON patch: the test of {path} failed")
        elif kind in ("add", "replace", "remove"):
            _set(thing, path, operation.get("value"), kind)
        else:
            raise ApiError(400, f"JSON patch: there is no operation {kind}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ApiError(422, f"JSON patch: cannot do {operation}: {error!r}") from None
    return thing


def _steps(path: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]


def _at(thing: Any, path: str) -> Any:
    for step in _steps(path):
        thing = thing[int(step)] if isinstance(thing, list) else thing[step]
    return thing


def _set(thing: Any, path: str, value: Any, kind: str) -> None:
    *parents, last = _steps(path)
    for step in parents:
        thing = thing[int(step)] if isinstance(thing, list) else thing[step]
    if isinstance(thing, list):
        if kind == "add":
            thing.insert(len(thing) if last == "-" else int(last), value)
        elif kind == "remove":
            del thing[int(last)]
        else:
            thing[int(last)] = value
    elif kind == "remove":
        del thing[last]
    else:
        thing[last] = value
