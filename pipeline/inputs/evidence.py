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

        This machine is nobody: what lies here is a copy of what came from elsewhere.
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
            # The last two labels: «a.co.uk» and «b.co.uk» count as related, which errs on the safe side.
            return ".".join(host.split(".")[-2:])
        return "" if address.is_loopback else str(address)


def grade(reasons: Sequence[Evidence]) -> Grade:
    """The grade of a digest: its best reason's; corroborated when downloads or records of unrelated sites agree."""
    best = max((reason.grade for reason in reasons), key=lambda one: one.strength, default=Grade.FIRST_USE)
    if not best.reaches(Grade.CORROBORATED) and len({reason.site for reason in reasons if reason.site}) > 1:
        return Grade.CORROBORATED
    return best


def merge(known: Iterable[Evidence], seen: Iterable[Evidence], today: str) -> tuple[Evidence, ...]:
    """What was known of an unchanged digest and what was seen now, strongest first.

    A reason that was known keeps its day; nothing is forgotten because an origin was silent this time.
    """
    found: dict[tuple[Grade, str], Evidence] = {(one.grade, one.source): one for one in known}
    for one in seen:
        before = found.get((one.grade, one.source))
        if before is None or before.observed is None:
            found[one.grade, one.source] = replace(one, observed=one.observed or today)
    return tuple(sorted(found.values(), key=lambda one: (-one.grade.strength, one.source)))


def least(policy: Mapping[str, Grade], key: str) -> Grade:
    """The grade that a policy asks of a component, of `base` or `packages`; without a policy every grade will do."""
    return policy.get(key, policy.get(DEFAULT, Grade.FIRST_USE))
