"""Why a digest is believed: graded reasons, and the least grade that a release asks for. No I/O.

A digest can have several reasons. They are kept in the lock with the day on which each was first seen, so that a
review reads what is new, and an upstream that did not change gives the same bytes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from urllib.parse import urlsplit


class Grade(StrEnum):
    """How good a reason is, strongest first."""

    SIGNED = "signed"  # covered by a signature of the vendor that was checked
    PUBLISHED = "published"  # the vendor's own checksum
    CORROBORATED = "corroborated"  # no published checksum; unrelated origins agree
    RECORDED = "recorded"  # somebody else records it
    FIRST_USE = "first use"  # computed from a download

    @property
    def strength(self) -> int:
        """Greater is stronger."""
        return -list(Grade).index(self)

    def reaches(self, least: Grade) -> bool:
        """Whether it is that grade or a stronger one."""
        return self.strength >= least.strength


DEFAULT = "default"  # the key of a policy that stands for everything without a key of its own


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One reason."""

    grade: Grade
    source: str  # the URL that it was read from, with what was seen there, or one sentence
    observed: str | None = None  # YYYY-MM-DD on which it was first seen; None: not recorded

    @property
    def site(self) -> str:
        """Whose word it is: the host's domain, when the source begins with an http(s) URL; else nothing.

        This machine vouches for nothing: what is here is a copy of what came from elsewhere.
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
            # The last two labels: `a.co.uk` and `b.co.uk` count as related, which errs on the safe side.
            return ".".join(host.split(".")[-2:])
        return "" if address.is_loopback else str(address)


def grade(reasons: Sequence[Evidence]) -> Grade:
    """The grade of a digest: its best reason's; corroborated when downloads or records of unrelated sites agree."""
    best = max((reason.grade for reason in reasons), key=lambda grade: grade.strength, default=Grade.FIRST_USE)
    if not best.reaches(Grade.CORROBORATED) and len({reason.site for reason in reasons if reason.site}) > 1:
        return Grade.CORROBORATED
    return best


def merge(known: Iterable[Evidence], seen: Iterable[Evidence], today: str) -> tuple[Evidence, ...]:
    """What was known of an unchanged digest and what was seen now, strongest first.

    A reason that was known keeps its day; nothing is forgotten because an origin was silent this time.
    """
    merged = {(reason.grade, reason.source): reason for reason in known}
    for reason in seen:
        before = merged.get((reason.grade, reason.source))
        if before is None or before.observed is None:
            merged[reason.grade, reason.source] = replace(reason, observed=reason.observed or today)
    return tuple(sorted(merged.values(), key=lambda reason: (-reason.grade.strength, reason.source)))


def least(policy: Mapping[str, Grade], key: str) -> Grade:
    """The grade that a policy asks of a component, of `base` or `packages`; without a policy every grade will do."""
    return policy.get(key, policy.get(DEFAULT, Grade.FIRST_USE))
