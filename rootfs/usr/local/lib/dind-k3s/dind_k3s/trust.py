"""Whom a client of k3s trusts."""

from __future__ import annotations

import ssl


def trusting(authorities: str, *, any_name: bool = False) -> ssl.SSLContext:
    """A context that trusts these certificates (PEM), and is no stricter than Go's clients, which k3s's own are.

    Python asks a CA for extensions by which it may sign; a user's own CA may lack them.
    """
    context = ssl.create_default_context(cadata=authorities)
    context.check_hostname = not any_name
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
