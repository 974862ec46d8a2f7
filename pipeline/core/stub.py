"""The stub k3s of a rehearsal: how its version and its file say that it is one."""

from __future__ import annotations

MARKER = "dind-k3s stand-in"  # the Dockerfile knows the stub by it
SUFFIX = "+standin"  # how its version ends, also in lockfiles and measurements that are kept


def marked(version: str) -> str:
    """Return the version of the stub in the place of that version of k3s."""
    return version if version.endswith(SUFFIX) else version + SUFFIX


def is_stub(program: bytes) -> bool:
    """Whether a k3s is the stub, which the comment at its end says."""
    return f"{MARKER} ".encode() in program[-256:]
