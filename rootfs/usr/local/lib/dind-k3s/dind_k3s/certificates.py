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


def days_left(pem: bytes, now: datetime | None = None) -> int | None:
    """Days until the first certificate of a PEM file ends; None when there is none to be read."""
    validity = _VALIDITY.search(_der(pem))
    if validity is None:
        return None
    end = datetime.strptime(validity[2].decode(), "%y%m%d%H%M%S").replace(tzinfo=UTC)
    return (end - (now or datetime.now(UTC))).days


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
    return f"the cluster's certificates end in {days} days; supervisorctl restart k3s renews them, pods run on"


def in_window(window: str, hour: int) -> bool:
    """Whether K3S_RENEW_HOURS (`3-5`: from three to five) lets k3s be restarted at this hour."""
    found = re.fullmatch(r"(\d{1,2})-(\d{1,2})", window)
    if not found:
        return False
    first, end = int(found[1]), int(found[2])
    return first <= hour < end if first <= end else hour >= first or hour < end
