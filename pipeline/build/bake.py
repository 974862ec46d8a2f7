"""The one bake file: what buildx is asked for, rendered from the intent and the lock. No I/O.

The same arguments give the same bytes, so the file is compared with a golden one in the tests and is part of what
decides whether a build is needed at all. Paths are relative to the folder that buildx is started in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath

from pipeline.components import COMPONENTS
from pipeline.core.annotations import KEY, REHEARSAL, VARIANT
from pipeline.core.log import redact
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent


def describe(intent: Intent, lock: Lock, variant: Variant, *, lock_digest: Digest, rehearsed: bool) -> dict[str, str]:
    """Return the labels of each config, which are the annotations of the index and each manifest too.

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
    *,
    platforms: tuple[Platform, ...],
    annotations: Mapping[Variant, Mapping[str, str]],
    base: Digest,
    context: PurePosixPath,
    outputs: Mapping[Variant, PurePosixPath],
    epoch: int,
) -> str:
    """The text of docker-bake.json: a target for each variant, to be built in one call.

    A variant's stage begins with the image's, so no layer is made a second time.

    `annotations`: from `describe`. `base`: digest of the base image's index, whose OCI layout is in `context`/base.
    `context`/artifacts holds the verified files, one folder per architecture. `outputs`: the folders that the images
    are exported to, as OCI layouts. `epoch`: seconds since 1970 that configs and their histories are dated.

    - Layers are repeatable as they are made: the Dockerfile gives their files one time (`settle`). The exporter's
      `rewrite-timestamp` (BuildKit docs/build-repro.md) would pack each a second time, half of a cold build, and date
      it with the lock's day, so that an update of one component would send all layers.
    - `oci-mediatypes` is set because its default changed with BuildKit 0.32.
    - The provenance attestation holds times and ids, so the index digest differs from build to build; the digests of
      the platforms' manifests do not (docker-library/official-images#16044).
    """
    targets = {
        variant.value: {
            "context": ".",
            "dockerfile": "Dockerfile",
            "target": variant.value,
            "platforms": [platform.value for platform in platforms],
            "contexts": {
                "base": f"oci-layout://{context}/base@{base}",
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
