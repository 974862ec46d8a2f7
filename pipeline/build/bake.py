"""The bake file for buildx, rendered from the intent and the lock. No I/O.

The same arguments give the same bytes: the tests compare the file with a golden one, and it is part of the digest that
decides whether a build is needed. Paths are relative to the working directory of buildx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath

from pipeline.components import COMPONENTS
from pipeline.core.annotations import KEY, REHEARSAL, VARIANT
from pipeline.core.log import redact
from pipeline.core.names import Digest
from pipeline.core.records import Variant
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent


def describe(intent: Intent, lock: Lock, variant: Variant, *, lock_digest: Digest, rehearsed: bool) -> dict[str, str]:
    """Return the labels of each config, which are the annotations of the index and of each manifest, too.

    Keys: https://github.com/opencontainers/image-spec/blob/main/annotations.md
    """
    labels = {
        "org.opencontainers.image.title": intent.title,
        "org.opencontainers.image.description": intent.description,
        "org.opencontainers.image.source": intent.source,
        "org.opencontainers.image.licenses": intent.licenses,
        "org.opencontainers.image.version": lock.version,
        "org.opencontainers.image.created": f"{lock.date}T00:00:00Z",
        "org.opencontainers.image.base.name": lock.base.image,
        "org.opencontainers.image.base.digest": lock.base.digest.text,
        f"{KEY}.lock": lock_digest.text,
        **{f"{KEY}.{component}": lock.versions[component] for component in COMPONENTS},
    }
    if variant is not Variant.IMAGE:
        labels[VARIANT] = variant.value
    if rehearsed:
        labels[REHEARSAL] = "made of stand-ins on one machine; not for use"
    return {key: redact(value) for key, value in labels.items()}


def render(
    intent: Intent,
    lock: Lock,
    annotations: Mapping[Variant, Mapping[str, str]],
    *,
    context: PurePosixPath,
    outputs: Mapping[Variant, PurePosixPath],
) -> str:
    """Return the text of docker-bake.json: a target for each variant, to be built in one call.

    `annotations`: from `describe`. `context`/base has the OCI layout of the base image, `context`/artifacts the
    verified files, one folder per architecture. `outputs`: the folders that the images are exported to, as OCI layouts.

    - The lock's date is the time of configs and their histories, in seconds since 1970.
    - A variant's stage begins with the image's, so no layer is made twice.
    - Layers are reproducible: the Dockerfile sets one time for their files (`settle`). The exporter's
      `rewrite-timestamp` (BuildKit docs/build-repro.md) would pack each layer again, half of a cold build, and set the
      lock's date, so that an update of one component would ship all layers.
    - `oci-mediatypes` is set because its default changed with BuildKit 0.32.
    - The provenance attestation has times and ids, so the index digest differs from build to build; the digests of the
      platforms' manifests do not (docker-library/official-images#16044).
    """
    epoch = int(datetime.fromisoformat(lock.date).replace(tzinfo=UTC).timestamp())
    targets = {
        variant.value: {
            "context": ".",
            "dockerfile": "Dockerfile",
            "target": variant.value,
            "platforms": [platform.value for platform in intent.platforms],
            "contexts": {
                "base": f"oci-layout://{context}/base@{lock.base.digest}",
                "artifacts": f"{context}/artifacts",
            },
            "args": {"SOURCE_DATE_EPOCH": str(epoch)},
            "labels": dict(sorted(annotations[variant].items())),
            "annotations": [f"index,manifest:{key}={value}" for key, value in sorted(annotations[variant].items())],
            "attest": ["type=provenance,mode=max"],
            "output": [f"type=oci,dest={output},tar=false,oci-mediatypes=true"],
            "network": "none",
        }
        for variant, output in outputs.items()
    }
    return json.dumps({"target": targets}, indent=2, sort_keys=True) + "\n"
