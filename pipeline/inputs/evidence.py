"""Evidence: graded reasons to trust a digest, and the minimum grade of a policy. No I/O.

A digest can have several reasons. The lock has the day on which each was first observed, so that a review shows what is
new, and an unchanged upstream gives the same bytes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from urllib.parse import urlsplit


class Grade(StrEnum):
    """Strength of a reason, strongest first."""

    SIGNED = "signed"  # by the vendor; the signature was verified
    PUBLISHED = "published"  # the vendor's own checksum
    CORROBORATED = "corroborated"  # no published checksum; unrelated sites agree
    RECORDED = "recorded"  # by a third party
    FIRST_USE = "first use"  # computed from a download

    @property
    def strength(self) -> int:
        """Greater is stronger."""
        return -list(Grade).index(self)

    def reaches(self, least: Grade) -> bool:
        """Return whether it is that grade or a stronger one."""
        return self.strength >= least.strength


DEFAULT = "default"  # a policy's key for everything that has no separate key


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One reason to trust a digest."""

    grade: Grade
    source: str  # a URL, with a remark, or a sentence
    observed: str | None = None  # YYYY-MM-DD of the first time; None: not recorded

    @property
    def site(self) -> str:
        """The domain of a source that begins with an http(s) URL; else empty.

        Also empty for this machine, which only has copies from elsewhere.
        """
        try:
            parts = urlsplit(self.source.partition(" ")[0])
            host = parts.hostname or ""
        except ValueError:
            return ""
        if parts.scheme not in ("http", "https") or host == "localhost":
            return ""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            # The last two labels: `a.co.uk` and `b.co.uk` count as related, to be on the safe side.
            return ".".join(host.split(".")[-2:])
        return "" if address.is_loopback else str(address)


def grade(reasons: Sequence[Evidence]) -> Grade:
    """Return the grade of a digest: its strongest reason's; corroborated if unrelated sites agree."""
    best = max((reason.grade for reason in reasons), key=lambda grade: grade.strength, default=Grade.FIRST_USE)
    if not best.reaches(Grade.CORROBORATED) and len({reason.site for reason in reasons if reason.site}) > 1:
        return Grade.CORROBORATED
    return best


def merge(known: Iterable[Evidence], seen: Iterable[Evidence], today: str) -> tuple[Evidence, ...]:
    """Return the known and the new reasons for an unchanged digest, strongest first; known ones keep their day."""
    merged = {(reason.grade, reason.source): reason for reason in known}
    for reason in seen:
        before = merged.get((reason.grade, reason.source))
        if before is None or before.observed is None:
            merged[reason.grade, reason.source] = replace(reason, observed=reason.observed or today)
    return tuple(sorted(merged.values(), key=lambda reason: (-reason.grade.strength, reason.source)))


def least(policy: Mapping[str, Grade], key: str) -> Grade:
    """Return the minimum grade for a component, `base` or `packages`; FIRST_USE without a policy."""
    return policy.get(key, policy.get(DEFAULT, Grade.FIRST_USE))
