"""An inventory as CycloneDX 1.6 in JSON. Source: https://cyclonedx.org/docs/1.6/json/."""

from __future__ import annotations

import json
import uuid
from typing import Any

from pipeline.sbom.packages import Inventory, Kind, Package

_TYPE = {
    Kind.IMAGE: "container",
    Kind.BASE: "container",
    Kind.APPLICATION: "application",
    Kind.LIBRARY: "library",
    Kind.SYSTEM: "library",
    Kind.INNER: "container",
}


def render(inventory: Inventory) -> str:
    """Return the document; the same inventory gives the same bytes."""
    needs: dict[str, list[str]] = {package.key: [] for package in inventory.packages}
    for outer, inner in (*inventory.contains, *inventory.uses):
        needs[outer].append(inner)
    needs[inventory.root.key].append(inventory.base.key)
    root = _component(inventory.root)
    # The base is an ancestor (pedigree), since its packages are in the image; the dependencies have it, too.
    root["pedigree"] = {"ancestors": [_component(inventory.base, reference="base-ancestor")]}
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, inventory.namespace)}",
        "version": 1,
        "metadata": {
            "timestamp": inventory.created,
            "tools": {"components": [{"type": "application", "name": "dind-k3s-pipeline"}]},
            "component": root,
        },
        "components": [_component(package) for package in inventory.packages if package is not inventory.root],
        "dependencies": [{"ref": key, "dependsOn": sorted(set(inner))} for key, inner in sorted(needs.items())],
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _component(package: Package, *, reference: str | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": _TYPE[package.kind],
        "bom-ref": reference or package.key,
        "name": package.name,
        "properties": [{"name": "dind-k3s:kind", "value": package.kind.value}],
    }
    if package.version:
        entry["version"] = package.version
    if package.purl:
        entry["purl"] = package.purl
    if package.sha256:
        entry["hashes"] = [{"alg": "SHA-256", "content": package.sha256}]
    if package.licence:
        entry["licenses"] = [{"expression": package.licence}]
    if package.supplier:
        entry["supplier"] = {"name": package.supplier}
    if package.url:
        entry["externalReferences"] = [{"type": "distribution", "url": package.url}]
    for name, value in (("path", package.path), ("source", package.source), ("note", package.note)):
        if value:
            entry["properties"].append({"name": f"dind-k3s:{name}", "value": f"/{value}" if name == "path" else value})
    return entry
