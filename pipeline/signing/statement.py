"""What we sign: in-toto statements, each about one manifest or index. No I/O.

The same subject and predicate give the same bytes, so a rerun recognizes what was signed before.
Sources: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md,
https://github.com/sigstore/cosign (specs/COSIGN_PREDICATE_SPEC.md; what `cosign sign` of version 3 writes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pipeline.core.names import Digest

PAYLOAD = "application/vnd.in-toto+json"
SIGNATURE = "https://sigstore.dev/cosign/sign/v1"  # the predicate of a signature: it is empty


def make(name: str, digest: Digest, predicate_type: str, predicate: Mapping[str, object]) -> bytes:
    """A statement about the manifest or index of that digest; `name` is for people."""
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest.hex}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
