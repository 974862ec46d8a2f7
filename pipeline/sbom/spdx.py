"""An inventory as SPDX 2.3 in JSON. Source: https://spdx.github.io/spdx-spec/v2.3/ and its JSON schema."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pipeline.sbom.packages import Inventory, Kind, Package

_NO_ASSERTION = "NOASSERTION"
_DOCUMENT = "SPDXRef-DOCUMENT"
_PURPOSE = {
    Kind.IMAGE: "CONTAINER",
    Kind.BASE: "CONTAINER",
    Kind.APPLICATION: "APPLICATION",
    Kind.LIBRARY: "LIBRARY",
    Kind.SYSTEM: "APPLICATION",
    Kind.INNER: "CONTAINER",
}


def render(inventory: Inventory) -> str:
    """Return the document; the same inventory gives the same bytes."""
    relations = [(_DOCUMENT, "DESCRIBES", _id(inventory.root.key))]
    relations += [(_id(inventory.root.key), "DESCENDANT_OF", _id(inventory.base.key))]
    relations += [(_id(outer), "CONTAINS", _id(inner)) for outer, inner in inventory.contains]
    relations += [(_id(user), "DEPENDS_ON", _id(used)) for user, used in inventory.uses]
    document = {
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
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _package(package: Package) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "SPDXID": _id(package.key),
        "name": package.name,
        "downloadLocation": package.url or _NO_ASSERTION,
        "filesAnalyzed": False,
        "licenseConcluded": _NO_ASSERTION,
        "licenseDeclared": package.licence or _NO_ASSERTION,
        "copyrightText": _NO_ASSERTION,
        "primaryPackagePurpose": _PURPOSE[package.kind],
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
