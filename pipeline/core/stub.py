"""The stub k3s of a rehearsal: the marks in its version and in its file."""

from __future__ import annotations

MARKER = "dind-k3s stand-in"  # the Dockerfile recognizes the stub by it
SUFFIX = "+standin"  # of its version, also in lockfiles and measurements that are kept


def marked(version: str) -> str:
    """Return the stub's version in place of a k3s version."""
    return version if version.endswith(SUFFIX) else version + SUFFIX


def is_stub(program: bytes) -> bool:
    """Return whether a k3s is the stub: a comment at its end marks it."""
    return f"{MARKER} ".encode() in program[-256:]
