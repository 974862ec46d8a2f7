"""An inventory as SPDX 2.3 or CycloneDX 1.6, in JSON.

Sources: https://spdx.github.io/spdx-spec/v2.3/ and https://cyclonedx.org/docs/1.6/json/, with their JSON schemas.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from typing import Any

from pipeline.core.sboms import Form
from pipeline.sbom.packages import Inventory, Kind, Package

_NO_ASSERTION = "NOASSERTION"
_DOCUMENT = "SPDXRef-DOCUMENT"
# CycloneDX's type of a component; SPDX's purpose has the same words in capitals, but a Debian package is no library.
_TYPE = {
    Kind.IMAGE: "container",
    Kind.BASE: "container",
    Kind.APPLICATION: "application",
    Kind.LIBRARY: "library",
    Kind.SYSTEM: "library",
    Kind.INNER: "container",
}


def render(inventory: Inventory, form: Form) -> str:
    """Return the document; the same inventory gives the same bytes."""
    document = _spdx(inventory) if form is Form.SPDX else _cyclonedx(inventory)
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _spdx(inventory: Inventory) -> dict[str, Any]:
    relations = [(_DOCUMENT, "DESCRIBES", _id(inventory.root.key))]
    relations += [(_id(inventory.root.key), "DESCENDANT_OF", _id(inventory.base.key))]
    relations += [(_id(outer), "CONTAINS", _id(inner)) for outer, inner in inventory.contains]
    relations += [(_id(user), "DEPENDS_ON", _id(used)) for user, used in inventory.uses]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": _DOCUMENT,
        "name": f"{inventory.root.name} {inventory.root.version} {inventory.platform}",
        "documentNamespace": inventory.namespace,
        "creationInfo": {"created": inventory.created, "creators": ["Tool: dind-k3s-pipeline"]},
        "packages": [_package(package) for package in inventory.packages],
        "relationships": [
            {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": related}
            for element, kind, related in relations
        ],
        "hasExtractedLicensingInfos": [
            {"licenseId": name, "name": name.removeprefix("LicenseRef-"), "extractedText": text}
            for name, text in inventory.texts.items()
        ],
    }


def _package(package: Package) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "SPDXID": _id(package.key),
        "name": package.name,
        "downloadLocation": package.url or _NO_ASSERTION,
        "filesAnalyzed": False,
        "licenseConcluded": _NO_ASSERTION,
        "licenseDeclared": package.licence or _NO_ASSERTION,
        "copyrightText": _NO_ASSERTION,
        "primaryPackagePurpose": "APPLICATION" if package.kind is Kind.SYSTEM else _TYPE[package.kind].upper(),
        "supplier": _supplier(package.supplier),
    }
    if package.version:
        entry["versionInfo"] = package.version
    if package.sha256:
        entry["checksums"] = [{"algorithm": "SHA256", "checksumValue": package.sha256}]
    if package.path:
        entry["packageFileName"] = f"/{package.path}"
    if package.source:
        entry["sourceInfo"] = f"built from: {package.source}"
    if package.note:
        entry["comment"] = package.note
    if package.purl:
        reference = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl"}
        entry["externalRefs"] = [{**reference, "referenceLocator": package.purl}]
    return entry


def _supplier(text: str | None) -> str:
    """Return `Organization: NAME (ADDRESS)`."""
    if not text:
        return _NO_ASSERTION
    match = re.fullmatch(r"(.*?)\s*<([^>]+)>", text.strip())
    name, address = (match[1], f" ({match[2]})") if match else (text.strip(), "")
    return f"Organization: {name}{address}"


def _id(key: str) -> str:
    """Return an SPDX id: only letters, digits, dots and dashes, and a hash of the key to keep it unique."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", key).strip("-")
    return f"SPDXRef-{words}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _cyclonedx(inventory: Inventory) -> dict[str, Any]:
    needs: dict[str, list[str]] = {package.key: [] for package in inventory.packages}
    for outer, inner in (*inventory.contains, *inventory.uses):
        needs[outer].append(inner)
    needs[inventory.root.key].append(inventory.base.key)
    root = _component(inventory.root)
    # The base is an ancestor (pedigree), since its packages are in the image; the dependencies have it, too.
    root["pedigree"] = {"ancestors": [_component(inventory.base, reference="base-ancestor")]}
    return {
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
