"""How long the cluster's certificates are good for.

k3s makes them for a year and renews those that end soon only when it starts, so a box that runs for a year without a
restart of k3s dies of it. Pods do not notice such a restart.
"""

from __future__ import annotations

import re
from base64 import b64decode
from datetime import UTC, datetime

WARN_DAYS = 60  # k3s renews what has less than 90 days left, 120 in newer versions

# The validity of a certificate: two times in a row, as DER writes years below 2050.
_VALIDITY = re.compile(rb"\x17\r(\d{12})Z\x17\r(\d{12})Z")


def validity(pem: bytes) -> tuple[datetime, datetime] | None:
    """Begin and end of the first certificate of a PEM file; None when there is none to be read."""
    found = _VALIDITY.search(_der(pem))
    if found is None:
        return None
    begin, end = (datetime.strptime(text.decode(), "%y%m%d%H%M%S").replace(tzinfo=UTC) for text in found.groups())
    return begin, end


def days_left(pem: bytes, now: datetime | None = None) -> int | None:
    """Days until the first certificate of a PEM file ends, below 0 when it has; None when there is none to be read."""
    found = validity(pem)
    return (found[1] - (now or datetime.now(UTC))).days if found else None


def problem(pem: bytes, now: datetime | None = None) -> str:
    """Why the certificate is not valid at this time of day; empty when it is."""
    begin, end = validity(pem) or (None, None)
    now = now or datetime.now(UTC)
    if begin and now < begin:
        # Not even a restart helps: k3s has the same begin for all that its authorities sign (k3s-io/k3s#6152).
        return f"by the clock the cluster's certificates are not valid before {begin:%Y-%m-%d %H:%M} UTC"
    if end and now > end:
        return f"by the clock the cluster's certificates ended on {end:%Y-%m-%d}"
    return ""


def node_of(pem: bytes) -> str:
    """The node that a kubelet's certificate was made for: its subject is system:node:NAME."""
    der = _der(pem)
    length = re.search(rb"[\x0c\x13](.)(?=system:node:)", der, re.DOTALL)  # a string's type, its length, then itself
    return der[length.end() :][: length[1][0]].decode().removeprefix("system:node:") if length else ""


def _der(pem: bytes) -> bytes:
    body = re.search(rb"-----BEGIN CERTIFICATE-----(.+?)-----END", pem, re.DOTALL)
    return b64decode(body[1]) if body else b""


def warning(days: int | None) -> str:
    """What the user should know; empty while there is time."""
    if days is None or days >= WARN_DAYS:
        return ""
    when = f"end in {days} days" if days >= 0 else "have ended"
    return f"the cluster's certificates {when}; supervisorctl restart k3s renews them, pods run on"


def in_window(window: str, hour: int) -> bool:
    """Whether K3S_RENEW_HOURS (`3-5`: from three to five) lets k3s be restarted at this hour."""
    found = re.fullmatch(r"(\d{1,2})-(\d{1,2})", window)
    if not found:
        return False
    first, end = int(found[1]), int(found[2])
    return first <= hour < end if first <= end else hour >= first or hour < end
