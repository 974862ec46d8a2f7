"""In-toto statements about one manifest or index, and the bytes of them that are signed. No I/O.

The same subject and predicate give the same bytes, so a rerun recognizes earlier signatures.
Sources: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md,
https://github.com/sigstore/cosign (specs/COSIGN_PREDICATE_SPEC.md; `cosign sign` of version 3),
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pipeline.core.names import Digest

PAYLOAD = "application/vnd.in-toto+json"
SIGNATURE = "https://sigstore.dev/cosign/sign/v1"  # the predicate of a signature: it is empty


def make(name: str, digest: Digest, predicate_type: str, predicate: Mapping[str, object]) -> bytes:
    """Return a statement about a manifest or index; `name` is for readers."""
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest.hex}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def signed_bytes(statement: bytes) -> bytes:
    """Return the bytes that a signature of a statement covers (DSSE's pre-authentication encoding)."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(statement), statement)
